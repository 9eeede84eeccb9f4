"""Physics as a feature: the innovations y − H(M(x_b)) along the background trajectory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, require
from vardax_flax.core.interfaces import Encoder, Predict
from vardax_flax.encoders.conv import Conv1DEncoderConfig, Conv2DEncoderConfig, ConvEncoder
from vardax_flax.encoders.vector import IdentityEncoder, IdentityEncoderConfig, MLPEncoder, MLPEncoderConfig


def with_innovations(batch: Batch, innovation: Any, obs_rank: int, concatenate: Callable[..., Any] = jnp.concatenate) -> Batch:
    """Put innovations beside the observation: as more sites of a series `(time, site)`, as more channels of an image."""
    axis = -1 if obs_rank <= 2 else -3

    def twice(field: Any) -> Any:
        return None if field is None else concatenate([field, field], axis=axis)

    return batch._replace(
        input=concatenate([batch.input, innovation], axis=axis), mask=twice(batch.mask), noise_scale=twice(batch.noise_scale)
    )


class InnovationEncoder(Encoder):
    """context = inner(y beside d), d = m ⊙ (y − H(M(x_b))): the inner encoder sees the innovations along the background trajectory.

    They are what a variational analysis starts from (Courtier et al. 1994, *A strategy for operational implementation of 4D-Var*): a
    near-linear problem is near-linear in d, so little is left for the network to learn.

    Args:
        forward: M, one state `(*state)` → trajectory or state.
        obs_op: H, what `forward` returns → the noise-free observation `(*obs)`.
        inner: an encoder for the widened observation (see `with_innovations`).

    Example:
        >>> encoder = InnovationEncoder(model.trajectory, lambda x: x[10::10], inner)
        >>> context = encoder(batch)
    """

    def __init__(
        self, forward: Predict, obs_op: Callable[[jax.Array], jax.Array], inner: IdentityEncoder | MLPEncoder | ConvEncoder
    ) -> None:
        self.forward = forward
        self.obs_op = obs_op
        self.inner = inner
        self.features = inner.features

    def _augment(self, batch: Batch) -> Batch:
        inputs = self.inner.inputs
        if inputs.background_shape is None or batch.background is None:
            raise ConfigError("expected a `background` to take innovations from, got None; do pass Batch(..., background=x_b)")
        state_rank, obs_rank = len(inputs.background_shape), len(inputs.obs_shape)
        lead = batch.background.shape[: batch.background.ndim - state_rank]
        states = batch.background.reshape(-1, *inputs.background_shape)
        predicted = jax.vmap(lambda x: self.obs_op(self.forward(x)))(states)
        innovation = (batch.input - predicted.reshape(*lead, *predicted.shape[1:])) * batch.mask
        return with_innovations(batch, innovation, obs_rank)

    def calibrate(self, batch: Batch) -> None:
        self.inner.calibrate(self._augment(batch))

    def __call__(self, batch: Batch) -> jax.Array:
        return self.inner(self._augment(batch))


InnerConfig = IdentityEncoderConfig | MLPEncoderConfig | Conv1DEncoderConfig | Conv2DEncoderConfig


@dataclasses.dataclass(frozen=True)
class InnovationEncoderConfig:
    """The `inner` encoder over the observation and its innovations; needs a forward model and a background."""

    kind: ClassVar[str] = "innovation"
    inner: InnerConfig = dataclasses.field(default_factory=MLPEncoderConfig)

    def build(self, spec: Batch, rngs: nnx.Rngs, predict: Predict | None = None) -> InnovationEncoder:
        """The encoder for elements of these shapes; `predict` is H(M(·)).

        Raises:
            ConfigError: there is no forward model or no background.
        """
        if predict is None:
            raise ConfigError("expected a simulator with a forward model for the innovation encoder, got none; do pick another encoder")
        require(spec.background is not None, "a simulator with a background for the innovation encoder", None, "pick another encoder")
        wide = jax.eval_shape(lambda: with_innovations(_zeros(spec), jnp.zeros(spec.input.shape), len(spec.input.shape)))
        return InnovationEncoder(predict, _identity, self.inner.build(wide, rngs))


def _identity(observed: jax.Array) -> jax.Array:
    return observed


def _zeros(spec: Batch) -> Batch:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), spec)
