"""Physics as a feature: innovations y − H(M(x)) along the background trajectory, and along that of ever better guesses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, require
from vardax_flax.core.interfaces import GuessingEncoder, Predict
from vardax_flax.encoders.conv import Conv1DEncoderConfig, Conv2DEncoderConfig, ConvEncoder
from vardax_flax.encoders.vector import IdentityEncoder, IdentityEncoderConfig, MLPEncoder, MLPEncoderConfig

InnerEncoder = IdentityEncoder | MLPEncoder | ConvEncoder


def with_innovations(batch: Batch, guess: Any, innovation: Any, state_rank: int, obs_rank: int) -> Batch:
    """What an inner encoder sees: innovations beside the observation (as more sites of a series, more channels of an image), and the
    guess stacked on the background."""
    axis = -1 if obs_rank <= 2 else -3

    def twice(field: Any) -> Any:
        return None if field is None else jnp.concatenate([field, field], axis=axis)

    return batch._replace(
        input=jnp.concatenate([batch.input, innovation], axis=axis),
        mask=twice(batch.mask),
        noise_scale=twice(batch.noise_scale),
        background=jnp.stack([guess, batch.background], axis=-state_rank - 1),
    )


class InnovationEncoder(GuessingEncoder):
    """context_k = inner_k(y, d_k, x_k, x_b) with the innovations d_k = m ⊙ (y − H(M(x_k))), x₀ = x_b, x_{k+1} = x_k + S_k context_k.

    The innovations are what a variational analysis starts from, and linearising again around a better guess is its outer loop (Courtier
    et al. 1994, *A strategy for operational implementation of 4D-Var*). Around a good guess even a chaotic window is nearly linear, so
    little is left for the last network to learn. With one inner encoder there is no loop and the guess is the background.

    Args:
        forward: M, one state `(*state)` → trajectory or state.
        obs_op: H, what `forward` returns → the noise-free observation `(*obs)`.
        inner: encoders of what `with_innovations` gives, one for each loop and one for the final context; or a single encoder.

    Raises:
        ConfigError: a batch without background.

    Example:
        >>> encoder = InnovationEncoder(model.trajectory, lambda x: x[10::10], inner)
        >>> context, guess = encoder.encode(batch)
    """

    def __init__(
        self,
        forward: Predict,
        obs_op: Callable[[jax.Array], jax.Array],
        inner: InnerEncoder | Sequence[InnerEncoder],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        self.forward = forward
        self.obs_op = obs_op
        self.inner = nnx.List(inner if isinstance(inner, Sequence) else [inner])
        inputs = self.inner[-1].inputs
        self.features = self.inner[-1].features
        self.state_shape = tuple((inputs.background_shape or ())[1:])
        self.obs_rank = len(inputs.obs_shape)
        size = jax.numpy.zeros(self.state_shape).size
        rngs = nnx.Rngs(0) if rngs is None else rngs
        zeros = nnx.initializers.zeros_init()  # every guess starts as the background
        self.step = nnx.List([nnx.Linear(one.features, size, kernel_init=zeros, rngs=rngs) for one in self.inner[:-1]])

    def _augment(self, batch: Batch, guess: jax.Array) -> Batch:
        rank = len(self.state_shape)
        lead = guess.shape[: guess.ndim - rank]
        predicted = jax.vmap(lambda x: self.obs_op(self.forward(x)))(guess.reshape(-1, *self.state_shape))
        innovation = jnp.where(batch.mask != 0, batch.input - predicted.reshape(*lead, *predicted.shape[1:]), 0)
        return with_innovations(batch, guess, innovation, rank, self.obs_rank)

    def calibrate(self, batch: Batch) -> None:
        augmented = self._augment(batch, batch.background)
        for one in self.inner:
            one.calibrate(augmented)

    def encode(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The final context `(*batch, features)` and the guess it is made around `(*batch, *state)`."""
        if batch.background is None:
            raise ConfigError("expected a `background` to take innovations from, got None; do pass Batch(..., background=x_b)")
        guess = batch.background
        for one, step in zip(self.inner, self.step, strict=False):
            guess = guess + step(one(self._augment(batch, guess))).reshape(guess.shape)
        return self.inner[-1](self._augment(batch, guess)), guess


InnerConfig = IdentityEncoderConfig | MLPEncoderConfig | Conv1DEncoderConfig | Conv2DEncoderConfig


@dataclasses.dataclass(frozen=True)
class InnovationEncoderConfig:
    """The `inner` encoder over observation and innovations, after `outer_loops` improvements of the guess they are taken around."""

    kind: ClassVar[str] = "innovation"
    inner: InnerConfig = dataclasses.field(default_factory=MLPEncoderConfig)
    outer_loops: int = 0

    def __post_init__(self) -> None:
        require(self.outer_loops >= 0, "outer_loops >= 0", self.outer_loops, "pass 0 or more")

    def build(self, spec: Batch, rngs: nnx.Rngs, predict: Predict | None = None) -> InnovationEncoder:
        """The encoder for elements of these shapes; `predict` is H(M(·)).

        Raises:
            ConfigError: there is no forward model or no background.
        """
        if predict is None:
            raise ConfigError("expected a simulator with a forward model for the innovation encoder, got none; do pick another encoder")
        require(spec.background is not None, "a simulator with a background for the innovation encoder", None, "pick another encoder")
        ranks = len(spec.background.shape), len(spec.input.shape)
        wide = jax.eval_shape(lambda b: with_innovations(b, b.background, b.input, *ranks), spec)
        inner = [self.inner.build(wide, rngs) for _ in range(self.outer_loops + 1)]
        return InnovationEncoder(predict, _identity, inner, rngs=rngs)


def _identity(observed: jax.Array) -> jax.Array:
    return observed
