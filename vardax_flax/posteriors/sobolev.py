"""A loss on derivatives: how the point estimate moves with the observation, against how the exact one does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch, leading_shape
from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import Conjugate, Key, LeastSquares, Simulator
from vardax_flax.nn import Standardizer
from vardax_flax.ops.gauss_newton import gauss_newton

ITERATIONS = 6  # of Gauss–Newton from the truth, which is within a few standard deviations of the mode


@dataclasses.dataclass(frozen=True)
class PosteriorMean:
    """x*(y) = E[x | y] of an element whose posterior is known."""

    simulator: Conjugate

    def __call__(self, element: Batch) -> jax.Array:
        return self.simulator.posterior(element)[0]


@dataclasses.dataclass(frozen=True)
class LeastSquaresMode:
    """x*(y) = argmin ½‖r(x)‖² of an element, found from its true state and differentiated by the implicit function theorem."""

    simulator: LeastSquares

    def __call__(self, element: Batch) -> jax.Array:
        shape = element.target.shape

        def residual(x: jax.Array, _: jax.Array) -> jax.Array:
            return self.simulator.residual(x.reshape(shape), element)

        return gauss_newton(residual, element.target.ravel(), jnp.arange(ITERATIONS)).x.reshape(shape)


def exact_estimate(simulator: Simulator) -> Callable[[Batch], jax.Array]:
    """The point estimate of one element whose derivative is known: the posterior mean, or the mode of a least-squares problem.

    Raises:
        ConfigError: the simulator has neither.
    """
    if isinstance(simulator, Conjugate):
        return PosteriorMean(simulator)
    if isinstance(simulator, LeastSquares):
        return LeastSquaresMode(simulator)
    got = type(simulator).__name__
    raise ConfigError(f"expected a `Conjugate` or `LeastSquares` simulator for derivatives, got {got}; do leave sobolev_weight=0")


class SobolevTerm(nnx.Module):
    """w E‖D⁻¹ (∂x̂/∂y − ∂x*/∂y) S v‖², v ~ N(0, I) where observed; S, D the standard deviations of observation and state.

    An estimate can be right on average and still move wrongly with the observation, which is what an adjoint gate sees. The mean over v is
    the squared Frobenius norm of the error, from one forward-mode product for each element (Czarnecki et al. 2017, *Sobolev training for
    neural networks*).

    Args:
        exact: x*, one element → state.
        weight: w, in nats.
        spec: shapes of one element.

    Example:
        >>> term = SobolevTerm(exact_estimate(simulator), 0.1, simulator.spec)
    """

    def __init__(self, exact: Callable[[Batch], jax.Array], weight: float, spec: Batch) -> None:
        self.exact = exact
        self.weight = weight
        self.observed = Standardizer(tuple(spec.input.shape))
        self.state = Standardizer(tuple(spec.target.shape))

    def calibrate(self, batch: Batch) -> None:
        """Learn S and D from one large batch."""
        self.observed.calibrate(batch.input, batch.mask)
        self.state.calibrate(batch.target)

    def __call__(self, estimate: Callable[[Batch], jax.Array], batch: Batch, spec: Batch, key: Key) -> jax.Array:
        """The term for an estimate `(batch) -> (*batch, *state)`, averaged over a batch with targets."""
        lead = leading_shape(batch, spec)
        size = math.prod(lead)
        flat = Batch(*(None if f is None else f.reshape(size, *f.shape[len(lead) :]) for f in batch))
        direction = self.observed.std[...] * jax.random.normal(key, flat.input.shape, flat.input.dtype)
        direction = jnp.where(flat.mask != 0, direction, 0)

        def moved(function: Callable[[Batch], jax.Array]) -> jax.Array:
            return jax.jvp(lambda y: function(flat._replace(input=y)), (flat.input,), (direction,))[1]

        error = (moved(estimate) - jax.lax.stop_gradient(moved(jax.vmap(self.exact)))) / self.state.std[...]
        return self.weight * jnp.square(error).reshape(size, -1).sum(axis=-1).mean()
