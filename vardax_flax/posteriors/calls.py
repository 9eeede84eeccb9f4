"""Calling an amortized posterior from outside: checked, padded to a bucket of sizes, compiled once for each bucket."""

from __future__ import annotations

import abc
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.batch import Batch, check_batch
from vardax_flax.core.config import ConfigError, require
from vardax_flax.core.interfaces import AnalysisStep, Estimator, Key
from vardax_flax.core.remember import traced


class ShapeDtype(NamedTuple):
    """Static shape of one field of an element; hashable, so that the model's structure is one jit key."""

    shape: tuple[int, ...]
    dtype: Any


def static_spec(spec: Batch) -> Batch:
    """The shapes of one element as something that a module may hold."""
    return Batch(*(None if field is None else ShapeDtype(tuple(field.shape), np.dtype(field.dtype)) for field in spec))


class Amortized(Estimator):
    """Interface of an estimator that answers any observation in one forward pass: subclasses bring the traced halves and the fields here.

    Every call takes any leading batch axes; outside `jit` it checks its input, compiles once for each size bucket (powers of two, and
    eighths between them) and reuses it.

    Args:
        spec: shapes of one element, by `static_spec`.
        allow_unobserved: whether a window without any observation is answered.
        increment: whether the answer is measured from a background.
    """

    spec: Batch
    allow_unobserved: bool
    increment: bool
    head: Any

    @abc.abstractmethod
    def traced_mode(self, batch: Batch, key: Key) -> jax.Array:
        """The most probable state `(*batch, *state)`."""

    @abc.abstractmethod
    def traced_sample(self, batch: Batch, key: Key, n: int) -> jax.Array:
        """n draws `(*batch, n, *state)`; the first of them whatever n is."""

    @abc.abstractmethod
    def traced_log_prob(self, x: jax.Array, batch: Batch) -> jax.Array:
        """log q of states `(*batch, [n,] *state)`, in nats."""

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self.spec.target.shape

    def __call__(self, batch: Batch, key: Key | None = None) -> jax.Array:
        """The most probable state `(*batch, *state)`: the mean of a Gaussian, else gradient ascent on log q (`key` for its start).

        With a locating encoder, the most probable point in its coordinates, as a state; of an ensemble, the best of its members' modes,
        or, of heads without a density, the mean of their answers.
        """
        key = jax.random.key(0) if key is None else key
        return self._answer(_mode, batch, key)

    def sample(self, batch: Batch, key: Key, n: int) -> jax.Array:
        """n draws of q(x | y) per element, `(*batch, n, *state)`. Row i has its own key: cutting or padding a batch changes nothing."""
        require(n > 0, "n > 0 draws", n, "pass a positive number")
        bucket = n if traced(batch) else bucket_of(n)
        draws = self._answer(_sampler(bucket), batch, key)
        return cut(draws, n, draws.ndim - len(self.state_shape) - 1)

    def log_prob(self, x: Any, batch: Batch) -> jax.Array:
        """log q(x | y) in nats. `x` is `(*batch, *state)`, or `(*batch, n, *state)` with the result `(*batch, n)`.

        Raises:
            NotImplementedError: the head has no density.
        """
        return self._answer(_log_prob, batch, jnp.asarray(x), lambda x, lead, pad: pad(_check_states(x, lead, self.state_shape)))

    def as_analysis_step(self) -> AnalysisStep:
        """The posterior as one step of an assimilation cycle: `step(forecast, obs) -> analysis`; the forecast is the background.

        Raises:
            ConfigError: the model was trained without a background, so it would have to ignore the forecast.
        """
        if not self.increment:
            raise ConfigError(
                "expected a model that conditions on a background, got one trained without; "
                "do train on a simulator whose elements carry `background`, so that the forecast is used"
            )
        return _AnalysisStep(self)

    def _answer(self, function: Any, batch: Batch, extra: Any, fit_extra: Any = None) -> jax.Array:
        """Run a traced half directly under a trace, else on a checked batch padded to its bucket, compiled once for each bucket.

        `fit_extra(extra, lead, pad)` checks and pads what else has the leading axes of the batch.
        """
        if traced((batch, extra)):
            return function(self, batch, extra)
        batch = check_batch(batch._replace(target=None), self._input_spec(), allow_unobserved=self.allow_unobserved)
        lead_rank = batch.input.ndim - len(self.spec.input.shape)
        lead = batch.input.shape[:lead_rank]
        size = math.prod(lead)
        bucket = bucket_of(size)

        def pad(array: jax.Array) -> Any:
            flat = array.reshape(size, *array.shape[lead_rank:])
            # by NumPy: a small program would be compiled for each new size
            return np.concatenate([flat, np.repeat(flat[-1:], bucket - size, axis=0)]) if bucket > size else flat

        if fit_extra is not None:
            extra = fit_extra(extra, lead, pad)
        graphdef, state = nnx.split(self)
        out = _compiled(function, graphdef)(state, jax.tree.map(pad, batch), extra)
        return cut(out, size, 0).reshape(*lead, *out.shape[1:])

    def _input_spec(self) -> Batch:
        return Batch(*(None if f is None else jax.ShapeDtypeStruct(f.shape, f.dtype) for f in self.spec._replace(target=None)))


def cut(array: jax.Array, n: int, axis: int) -> jax.Array:
    """The first n along an axis; where the host can see the memory by NumPy, which compiles nothing for a new n."""
    if array.shape[axis] == n:
        return array
    index = (*(slice(None),) * axis, slice(n))
    if traced(array) or any(device.platform != "cpu" for device in array.devices()):
        return array[index]
    return jax.device_put(np.asarray(array)[index])


def bucket_of(n: int) -> int:
    """The next power of two, above 32 the next eighth of one: a size that is compiled serves others, and at most a ninth of it is waste."""
    power = 1 << max(n - 1, 0).bit_length()
    step = power // 16 if power > 32 else power
    return -(-n // step) * step


def _check_states(x: jax.Array, lead: tuple[int, ...], state: tuple[int, ...]) -> jax.Array:
    draws = x.shape[len(lead) : x.ndim - len(state)]
    if x.shape != (*lead, *draws, *state) or len(draws) > 1:
        raise ValueError(f"expected states of shape {(*lead, *state)} or {(*lead, 'n', *state)}, got {x.shape}; do reshape them")
    return x


@functools.lru_cache(maxsize=128)
def _compiled(function: Any, graphdef: Any) -> Any:
    return jax.jit(lambda state, batch, extra: function(nnx.merge(graphdef, state), batch, extra))


def _mode(model: Amortized, batch: Batch, key: Key) -> jax.Array:
    return model.traced_mode(batch, key)


def _sample(model: Amortized, batch: Batch, key: Key, *, n: int) -> jax.Array:
    return model.traced_sample(batch, key, n)


@functools.lru_cache(maxsize=64)
def _sampler(n: int) -> Any:
    return functools.partial(_sample, n=n)  # one object for each n: it is part of the key under which compiled code is kept


def _log_prob(model: Amortized, batch: Batch, x: jax.Array) -> jax.Array:
    return model.traced_log_prob(x, batch)


class _AnalysisStep:
    """`as_analysis_step` of an amortized posterior."""

    def __init__(self, model: Amortized) -> None:
        self.model = model

    def __call__(self, forecast: Any, obs: Any, *, obs_op: Any = None, obs_err_cov: Any = None) -> jax.Array:
        """The mode of q(x | obs, forecast). NaN in `obs` means unobserved.

        Raises:
            ValueError: an observation operator or error covariance is passed: the network has learned those of its simulator.
        """
        for name, value in (("obs_op", obs_op), ("obs_err_cov", obs_err_cov)):
            if value is not None:
                raise ValueError(f"expected {name}=None (the network has learned its simulator's), got {value!r}; do train for that {name}")
        obs = jnp.asarray(obs)
        return self.model(Batch(input=obs, mask=(~jnp.isnan(obs)).astype(jnp.float32), background=jnp.asarray(forecast)))
