"""Physics as a feature: innovations y − H(M(x)) along the background trajectory, and along that of ever better guesses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, require
from vardax_flax.core.interfaces import Encoded, LeastSquares, LocatingEncoder, Physics, Predict
from vardax_flax.encoders.conv import Conv1DEncoderConfig, Conv2DEncoderConfig, ConvEncoder
from vardax_flax.encoders.vector import IdentityEncoder, IdentityEncoderConfig, MLPEncoder, MLPEncoderConfig
from vardax_flax.ops.gauss_newton import Laplace, gauss_newton

InnerEncoder = IdentityEncoder | MLPEncoder | ConvEncoder
Residual = Callable[[jax.Array, Batch], jax.Array]
GAUSS_NEWTON_STEPS = 4  # from a learned guess that is close in most windows


def with_innovations(batch: Batch, guess: Any, innovation: Any, state_rank: int, obs_rank: int) -> Batch:
    """What an inner encoder sees: innovations beside the observation and the guess beside the background, each pair on a new axis."""

    def pair(first: Any, second: Any, rank: int) -> Any:
        return None if first is None else jnp.stack([first, second], axis=-rank - 1)

    return batch._replace(
        input=pair(batch.input, innovation, obs_rank),
        mask=pair(batch.mask, batch.mask, obs_rank),
        noise_scale=pair(batch.noise_scale, batch.noise_scale, obs_rank),
        background=pair(guess, batch.background, state_rank),
    )


class InnovationEncoder(LocatingEncoder):
    """context_k = inner_k(y, d_k, x_k, x_b) with the innovations d_k = m ⊙ (y − H(M(x_k))), x₀ = x_b, x_{k+1} = x_k + S_k context_k.

    The innovations are what a variational analysis starts from, and linearising again around a better guess is its outer loop (Courtier
    et al. 1994, *A strategy for operational implementation of 4D-Var*). Around a good guess even a chaotic window is nearly linear, so
    little is left for the last network to learn. With one inner encoder there is no loop and the guess is the background.

    With `residual` the last guess starts a few Gauss–Newton steps on ½‖r(x)‖², whose result and precision JᵀJ locate and whiten the
    state, so that the head models the departure from a Laplace approximation; how the valley bends joins the context. That costs some
    model runs for each component of the state.

    Args:
        forward: M, one state `(*state)` → trajectory or state.
        obs_op: H, what `forward` returns → the noise-free observation `(*obs)`.
        residual: r(x, element) of a `LeastSquares` simulator, to finish by Gauss–Newton; None leaves the learned guess as it is.
        inner: encoders of what `with_innovations` gives, one for each loop and one for the final context; or a single encoder.

    Raises:
        ConfigError: a batch without background.

    Example:
        >>> encoder = InnovationEncoder(model.trajectory, lambda x: x[10::10], inner)
        >>> context, center, factor, guess = encoder.locate(batch)
    """

    def __init__(
        self,
        forward: Predict,
        obs_op: Callable[[jax.Array], jax.Array],
        inner: InnerEncoder | Sequence[InnerEncoder],
        *,
        residual: Residual | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        self.forward = forward
        self.obs_op = obs_op
        self.residual = residual
        self.inner = nnx.List(inner if isinstance(inner, Sequence) else [inner])
        inputs = self.inner[-1].inputs
        self.features = self.inner[-1].features
        self.state_shape = tuple((inputs.background_shape or ())[1:])
        self.obs_rank = len(inputs.obs_shape) - 1
        size = math.prod(self.state_shape)
        self.features += 0 if residual is None else size**2 + size
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
        # one after the other: each sees innovations around what those before it and the iteration make of them
        guess = batch.background
        for one, step in zip(self.inner, self.step, strict=False):
            one.calibrate(self._augment(batch, guess))
            guess = self._improve(batch, guess, one, step)
        center = guess if self.residual is None else self._gauss_newton(batch, guess).x
        self.inner[-1].calibrate(self._augment(batch, center))

    def _improve(self, batch: Batch, guess: jax.Array, one: Any, step: nnx.Linear) -> jax.Array:
        return guess + step(one(self._augment(batch, guess))).reshape(guess.shape)

    def locate(self, batch: Batch) -> Encoded:
        """The final context and the state it is made around."""
        if batch.background is None:
            raise ConfigError("expected a `background` to take innovations from, got None; do pass Batch(..., background=x_b)")
        guess = batch.background
        for one, step in zip(self.inner, self.step, strict=False):
            guess = self._improve(batch, guess, one, step)
        if self.residual is None:
            return Encoded(self.inner[-1](self._augment(batch, guess)), guess)
        # the iteration is data for what follows: the guess learns from its own error, not through the steps
        center, factor, curvature, gradient = jax.lax.stop_gradient(self._gauss_newton(batch, guess))
        # along a valley that bends, whitened axis j spreads by half the curvature times χ²: var 1 + ½ Σᵢ C²ᵢⱼ; and by what is left to go
        spread = jnp.sqrt(1 + 0.5 * jnp.square(curvature).sum(axis=-2) + jnp.square(gradient))
        shape = jnp.concatenate([jnp.arcsinh(curvature).reshape(*gradient.shape[:-1], -1), jnp.arcsinh(gradient)], axis=-1)
        context = jnp.concatenate([self.inner[-1](self._augment(batch, center)), shape], axis=-1)
        return Encoded(context, center, factor / spread[..., None, :], guess if len(self.step) else None)

    def _gauss_newton(self, batch: Batch, guess: jax.Array) -> Laplace:
        """The Laplace approximation around the guess, with the leading axes of the batch and `center` of the state's shape."""
        lead = guess.shape[: guess.ndim - len(self.state_shape)]
        seen = batch._replace(target=None, input=jnp.where(batch.mask != 0, batch.input, 0))  # what is hidden may be NaN
        elements = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(lead) :]), seen)

        def one(element: Batch, x: jax.Array) -> Laplace:
            def residual(flat: jax.Array) -> jax.Array:
                return self.residual(flat.reshape(self.state_shape), element)  # type: ignore[misc]

            return gauss_newton(residual, x, GAUSS_NEWTON_STEPS)

        found = jax.vmap(one)(elements, guess.reshape(-1, math.prod(self.state_shape)))
        found = jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), found)
        return found._replace(x=found.x.reshape(guess.shape))


InnerConfig = IdentityEncoderConfig | MLPEncoderConfig | Conv1DEncoderConfig | Conv2DEncoderConfig


@dataclasses.dataclass(frozen=True)
class InnovationEncoderConfig:
    """The `inner` encoder over observation and innovations, after `outer_loops` learned improvements of the guess they are taken around
    and, with `gauss_newton`, a few Gauss–Newton steps from there, which need a least-squares simulator with a small state."""

    kind: ClassVar[str] = "innovation"
    inner: InnerConfig = dataclasses.field(default_factory=MLPEncoderConfig)
    outer_loops: int = 0
    gauss_newton: bool = False

    def __post_init__(self) -> None:
        require(self.outer_loops >= 0, "outer_loops >= 0", self.outer_loops, "pass 0 or more")

    def build(self, spec: Batch, rngs: nnx.Rngs, physics: Physics | None = None) -> InnovationEncoder:
        """The encoder for elements of these shapes, with the forward model of `physics`.

        Raises:
            ConfigError: there is no forward model or no background.
        """
        if physics is None:
            raise ConfigError("expected a simulator with a forward model for the innovation encoder, got none; do pick another encoder")
        require(spec.background is not None, "a simulator with a background for the innovation encoder", None, "pick another encoder")
        ranks = len(spec.background.shape), len(spec.input.shape)
        wide = jax.eval_shape(lambda b: with_innovations(b, b.background, b.input, *ranks), spec)
        inner = [self.inner.build(wide, rngs) for _ in range(self.outer_loops + 1)]
        residual = None
        if self.gauss_newton:
            kind = physics.kind
            require(isinstance(physics, LeastSquares), "a least-squares simulator for gauss_newton", kind, "set gauss_newton to False")
            residual = physics.residual  # type: ignore[attr-defined]
        return InnovationEncoder(physics.predict, _identity, inner, residual=residual, rngs=rngs)


def _identity(observed: jax.Array) -> jax.Array:
    return observed
