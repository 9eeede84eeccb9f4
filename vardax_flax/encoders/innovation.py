"""Physics as a feature: innovations y − H(M(x_b)) along the background trajectory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, require
from vardax_flax.core.interfaces import Encoder, Physics, Predict, Simulator
from vardax_flax.encoders.conv import Conv1DEncoderConfig, Conv2DEncoderConfig, ConvEncoder
from vardax_flax.encoders.vector import IdentityEncoder, IdentityEncoderConfig, MLPEncoder, MLPEncoderConfig

InnerEncoder = IdentityEncoder | MLPEncoder | ConvEncoder


def with_innovations(batch: Batch, center: Any, innovation: Any, state_rank: int, obs_rank: int) -> Batch:
    """What an inner encoder sees: innovations beside the observation and their origin beside the background, each pair on a new axis."""

    def pair(first: Any, second: Any, rank: int) -> Any:
        return None if first is None else jnp.stack([first, second], axis=-rank - 1)

    return batch._replace(
        input=pair(batch.input, innovation, obs_rank),
        mask=pair(batch.mask, batch.mask, obs_rank),
        noise_scale=pair(batch.noise_scale, batch.noise_scale, obs_rank),
        coords=pair(batch.coords, batch.coords, obs_rank + 1),
        background=pair(center, batch.background, state_rank),
    )


class InnovationEncoder(Encoder):
    """context = inner(y, d, x_b) with the innovations d = m ⊙ (y − H(M(x_b))), what a variational analysis starts from.

    Reference: Courtier et al. 1994, *A strategy for operational implementation of 4D-Var, using an incremental approach*.

    Args:
        forward: M, one state `(*state)` → trajectory or state.
        obs_op: H, what `forward` returns → the noise-free observation `(*obs)`.
        inner: encoder of what `with_innovations` gives.

    Raises:
        ConfigError: a batch without background.

    Example:
        >>> encoder = InnovationEncoder(model.trajectory, lambda x: x[10::10], inner)
        >>> context = encoder(batch)
    """

    def __init__(self, forward: Predict, obs_op: Callable[[jax.Array], jax.Array], inner: InnerEncoder) -> None:
        self.forward = forward
        self.obs_op = obs_op
        self.inner = inner
        self.state_shape = tuple((inner.inputs.background_shape or ())[1:])
        self.obs_rank = len(inner.inputs.obs_shape) - 1
        self.features = inner.features

    def _augment(self, batch: Batch, center: jax.Array) -> Batch:
        rank = len(self.state_shape)
        lead = center.shape[: center.ndim - rank]
        predicted = jax.vmap(lambda x: self.obs_op(self.forward(x)))(center.reshape(-1, *self.state_shape))
        innovation = jnp.where(batch.mask != 0, batch.input - predicted.reshape(*lead, *predicted.shape[1:]), 0)
        return with_innovations(batch, center, innovation, rank, self.obs_rank)

    def calibrate(self, batch: Batch) -> None:
        self.calibrate_around(batch, batch.background)

    def calibrate_around(self, batch: Batch, center: jax.Array) -> None:
        """Learn the statistics of innovations around another state than the background."""
        self.inner.calibrate(self._augment(batch, center))

    def __call__(self, batch: Batch) -> jax.Array:
        if batch.background is None:
            raise ConfigError("expected a `background` to take innovations from, got None; do pass Batch(..., background=x_b)")
        return self.around(batch, batch.background)

    def around(self, batch: Batch, center: jax.Array) -> jax.Array:
        """The context with innovations around another state `(*batch, *state)` than the background."""
        return self.inner(self._augment(batch, center))


InnerConfig = IdentityEncoderConfig | MLPEncoderConfig | Conv1DEncoderConfig | Conv2DEncoderConfig


def build_innovation(inner: InnerConfig, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None) -> InnovationEncoder:
    """The innovation encoder with this inner encoder and the forward model of the simulator.

    Raises:
        ConfigError: there is no forward model or no background.
    """
    if not isinstance(simulator, Physics):
        got = "none" if simulator is None else f"{simulator.kind!r} without one"
        raise ConfigError(f"expected a simulator with a forward model for the innovation encoder, got {got}; do pick another encoder")
    require(spec.background is not None, "a simulator with a background for the innovation encoder", None, "pick another encoder")
    ranks = len(spec.background.shape), len(spec.input.shape)
    wide = jax.eval_shape(lambda b: with_innovations(b, b.background, b.input, *ranks), spec)
    return InnovationEncoder(simulator.predict, _identity, inner.build(wide, rngs))


@dataclasses.dataclass(frozen=True)
class InnovationEncoderConfig:
    """The `inner` encoder over observation and innovations along the background trajectory."""

    kind: ClassVar[str] = "innovation"
    inner: InnerConfig = dataclasses.field(default_factory=MLPEncoderConfig)

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> InnovationEncoder:
        """The encoder for elements of these shapes, with the forward model of the simulator.

        Raises:
            ConfigError: there is no forward model or no background.
        """
        return build_innovation(self.inner, spec, rngs, simulator)


def _identity(observed: jax.Array) -> jax.Array:
    return observed
