"""The amortized posterior: an encoder and a head that answer any observation in one forward pass."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.batch import Batch, check_batch
from vardax_flax.core.config import ConfigError, closest, require
from vardax_flax.core.interfaces import (
    AnalysisStep,
    DensityHead,
    Encoded,
    Encoder,
    Estimator,
    Head,
    Key,
    LocatingEncoder,
    Physics,
    Simulator,
)
from vardax_flax.encoders import EncoderConfig, MLPEncoderConfig
from vardax_flax.heads import HEADS, FlowHeadConfig, HeadConfig
from vardax_flax.heads.sampling import rows_in_blocks
from vardax_flax.nn import Standardizer, Statistic


class ShapeDtype(NamedTuple):
    """Static shape of one field of an element; hashable, so that the model's structure is one jit key."""

    shape: tuple[int, ...]
    dtype: Any


def _static(spec: Batch) -> Batch:
    return Batch(*(None if field is None else ShapeDtype(tuple(field.shape), np.dtype(field.dtype)) for field in spec))


class AmortizedPosterior(Estimator):
    """q(x | y, x_b) = head(x; encoder(y, mask, x_b)), trained by min −E[log q(x | y, x_b)] over simulations (neural posterior estimation).

    Reference: Papamakarios & Murray 2016; Cranmer, Brehmer & Louppe 2020, *The frontier of simulation-based inference*. With a background
    of the state's shape the head models the increment x − x_b, or the departure from where the encoder locates the state; targets are
    standardised by statistics kept in the model.
    Every method takes any leading batch axes; called outside `jit` it checks its input, compiles once for each size bucket (powers of
    two, and eighths between them) and reuses it.

    Args:
        encoder: observation → context.
        head: context → distribution of the flat, standardised state.
        config: must name the head's type.
        spec: shapes of one element (`simulator.spec`), with a target.

    Raises:
        ConfigError: `config.head_type` disagrees with the head, or the spec has no target.

    Example:
        >>> posterior = AmortizedConfig(head=FlowHeadConfig()).build(simulator, nnx.Rngs(0))
        >>> draws = posterior.sample(batch, jax.random.key(0), 1000)        # (B, 1000, *state)
    """

    def __init__(self, encoder: Encoder, head: Head, config: AmortizedConfig, spec: Batch) -> None:
        require(
            config.head_type == head.kind,
            f"a {config.head_type!r} head as config.head_type says", f"{head.kind!r}", "build the head from config.head",
        )  # fmt: skip
        if spec.target is None:
            raise ConfigError("expected a spec with a target to infer, got None; do simulate Batch(..., target=x)")
        self.spec = _static(spec)
        self.allow_unobserved = config.allow_unobserved
        self.encoder = encoder
        self.head = head
        self.increment = spec.background is not None and spec.background.shape == spec.target.shape
        self.target = Standardizer((math.prod(spec.target.shape),))
        self.calibrated = Statistic(jnp.zeros((), bool))

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self.spec.target.shape

    def calibrate(self, batch: Batch) -> None:
        """Learn the standardisation of inputs and target from one large batch of simulations; once."""
        if self.calibrated[...]:
            return  # a second training goes on with the scales that the weights were trained for
        self.encoder.calibrate(batch)
        if not isinstance(self.encoder, LocatingEncoder):  # else standardised already
            self.target.calibrate(self._flat(batch.target - self._origin(batch)))
        self.calibrated[...] = jnp.ones((), bool)

    def loss(self, batch: Batch, key: Key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean −log q(x | y) in nats over the batch, in the units of x."""
        if batch.target is None:
            raise ValueError("expected `target` in a training batch, got None; do simulate Batch(..., target=x)")
        located = self._locate(batch)
        z, log_det = self._to_z(batch.target, batch, located)
        return (self.head.loss(z, located.context, key) - log_det).mean(), {}

    def __call__(self, batch: Batch, key: Key | None = None) -> jax.Array:
        """The most probable state `(*batch, *state)`: the mean of a Gaussian, else gradient ascent on log q (`key` for its start).

        With a locating encoder, the most probable point in its coordinates, as a state.
        """
        key = jax.random.key(0) if key is None else key
        return self._answer(_mode, batch, key)

    def sample(self, batch: Batch, key: Key, n: int) -> jax.Array:
        """n draws of q(x | y) per element, `(*batch, n, *state)`. Row i has its own key: cutting or padding a batch changes nothing."""
        require(n > 0, "n > 0 draws", n, "pass a positive number")
        bucket = n if _traced(batch) else _bucket(n)
        draws = self._answer(_sampler(bucket), batch, key)
        return _cut(draws, n, draws.ndim - len(self.state_shape) - 1)

    def log_prob(self, x: Any, batch: Batch) -> jax.Array:
        """log q(x | y) in nats. `x` is `(*batch, *state)`, or `(*batch, n, *state)` with the result `(*batch, n)`."""
        if not isinstance(self.head, DensityHead):
            raise TypeError(f"expected a head with a density, got {self.head.kind!r}; do use sample, or train a flow or regression head")
        return self._answer(_log_prob, batch, jnp.asarray(x), target_rank=len(self.state_shape))

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

    # -- the traced halves ------------------------------------------------------------------------------------------------------------

    def _locate(self, batch: Batch) -> Encoded:
        if isinstance(self.encoder, LocatingEncoder):
            return self.encoder.locate(batch)
        return Encoded(self.encoder(batch), None)

    def _origin(self, batch: Batch) -> Any:
        """What a state is measured from: the background where there is one."""
        return batch.background if self.increment else 0.0

    def _flat(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[: x.ndim - len(self.state_shape)], -1)

    def _to_z(self, x: jax.Array, batch: Batch, located: Encoded, *, draws: bool = False) -> tuple[jax.Array, jax.Array]:
        """The standardised state `(*batch, [n,] dim)` the head models, and log |dz/dx|."""
        if isinstance(self.encoder, LocatingEncoder):
            return self.encoder.to_z(x, batch, located.frame)
        return self.target(self._flat(x - self._per_draw(self._origin(batch), draws))), self.target.log_det()

    def _to_x(self, z: jax.Array, batch: Batch, located: Encoded, *, draws: bool = False) -> jax.Array:
        """The state of a standardised one."""
        if isinstance(self.encoder, LocatingEncoder):
            return self.encoder.to_x(z, batch, located.frame)
        x = self.target.inverse(z).reshape(*z.shape[:-1], *self.state_shape)
        return self._per_draw(self._origin(batch), draws) + x

    def _per_draw(self, origin: Any, draws: bool) -> Any:
        """The origin with an axis for draws before that of the state."""
        return jnp.expand_dims(origin, origin.ndim - len(self.state_shape)) if draws and self.increment else origin

    def _answer(self, function: Any, batch: Batch, extra: Any, target_rank: int | None = None) -> jax.Array:
        """Run a traced half directly under a trace, else on a checked batch padded to its bucket, compiled once for each bucket."""
        if _traced((batch, extra)):
            return function(self, batch, extra)
        batch = check_batch(batch._replace(target=None), self._input_spec(), allow_unobserved=self.allow_unobserved)
        lead_rank = batch.input.ndim - len(self.spec.input.shape)
        lead = batch.input.shape[:lead_rank]
        size = math.prod(lead)
        bucket = _bucket(size)

        def pad(array: jax.Array) -> Any:
            flat = array.reshape(size, *array.shape[lead_rank:])
            # by NumPy: a small program would be compiled for each new size
            return np.concatenate([flat, np.repeat(flat[-1:], bucket - size, axis=0)]) if bucket > size else flat

        if target_rank is not None:
            extra = pad(_check_states(extra, lead, self.state_shape))
        graphdef, state = nnx.split(self)
        out = _compiled(function, graphdef)(state, jax.tree.map(pad, batch), extra)
        return _cut(out, size, 0).reshape(*lead, *out.shape[1:])

    def _input_spec(self) -> Batch:
        return Batch(*(None if f is None else jax.ShapeDtypeStruct(f.shape, f.dtype) for f in self.spec._replace(target=None)))


def _cut(array: jax.Array, n: int, axis: int) -> jax.Array:
    """The first n along an axis; where the host can see the memory by NumPy, which compiles nothing for a new n."""
    if array.shape[axis] == n:
        return array
    index = (*(slice(None),) * axis, slice(n))
    if _traced(array) or any(device.platform != "cpu" for device in array.devices()):
        return array[index]
    return jax.device_put(np.asarray(array)[index])


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _bucket(n: int) -> int:
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


def _mode(model: AmortizedPosterior, batch: Batch, key: Key) -> jax.Array:
    located = model._locate(batch)
    return model._to_x(model.head.mode(located.context, key), batch, located)


def _sample(model: AmortizedPosterior, batch: Batch, key: Key, *, n: int) -> jax.Array:
    located = model._locate(batch)
    return model._to_x(model.head.sample(located.context, key, n), batch, located, draws=True)


@functools.lru_cache(maxsize=64)
def _sampler(n: int) -> Any:
    return functools.partial(_sample, n=n)  # one object for each n: it is part of the key under which compiled code is kept


def _log_prob(model: AmortizedPosterior, batch: Batch, x: jax.Array) -> jax.Array:
    if batch.input.ndim - len(model.spec.input.shape) == 1 and x.ndim - len(model.state_shape) == 1:
        return rows_in_blocks(lambda rows: _log_prob_whole(model, *rows), (batch, x), len(x))
    return _log_prob_whole(model, batch, x)


def _log_prob_whole(model: AmortizedPosterior, batch: Batch, x: jax.Array) -> jax.Array:
    located = model._locate(batch)
    context = located.context
    draws = x.ndim - len(model.state_shape) > context.ndim - 1
    z, log_det = model._to_z(x, batch, located, draws=draws)
    head = model.head
    assert isinstance(head, DensityHead)
    return head.log_prob(z, context[..., None, :] if draws else context) + log_det


class _AnalysisStep:
    """`as_analysis_step` of an amortized posterior."""

    def __init__(self, model: AmortizedPosterior) -> None:
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


@dataclasses.dataclass(frozen=True)
class AmortizedConfig:
    """An amortized posterior: which encoder, which head, and whether a window without any observation is answered (by the prior)."""

    encoder: EncoderConfig = dataclasses.field(default_factory=MLPEncoderConfig)
    head: HeadConfig = dataclasses.field(default_factory=FlowHeadConfig)
    allow_unobserved: bool = False

    @property
    def head_type(self) -> str:
        """The head's kind."""
        return self.head.kind

    def build(self, simulator: Simulator, rngs: nnx.Rngs) -> AmortizedPosterior:
        """The untrained posterior for the shapes of `simulator.spec`; its physics, if any, serves the encoders that use it."""
        require(self.head.kind in HEADS, f"a head of {', '.join(HEADS)}", self.head.kind, f"pick one{closest(self.head.kind, HEADS)}")
        spec = simulator.spec
        encoder = self.encoder.build(spec, rngs, simulator if isinstance(simulator, Physics) else None)
        dim = math.prod(spec.target.shape)
        return AmortizedPosterior(encoder, self.head.build(dim, encoder.features, rngs), self, spec)
