"""Conditioning at the time of drawing: a velocity bent towards observations that no training has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.diffusion.samplers import Velocity, denoised
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import principal_axes

PROBES = 128  # points of a standard normal by which a spread is measured


class Spread(NamedTuple):
    """How far new observations spread before they are made, in units of their noise: a covariance A diag(λ) Aᵀ + ρ (I − A Aᵀ).

    Args:
        axes: A `(m, k)`, orthonormal columns, k = m up to 128.
        variance: λ `(k,)` along them.
        rest: ρ `()` across them, if there are fewer than m.
    """

    axes: jax.Array
    variance: jax.Array
    rest: jax.Array

    def whiten(self, r: jax.Array, share: jax.Array) -> jax.Array:
        """(I + share · covariance)⁻¹ r."""
        along = r @ self.axes
        inside = self.axes @ (along / (1 + share * self.variance))
        complete = self.axes.shape[0] == self.axes.shape[1]
        return inside if complete else inside + (r - self.axes @ along) / (1 + share * self.rest)


def probes(dim: int) -> np.ndarray:
    """Points `(128, dim)` like a standard normal, the same at every call; up to 127 components of exactly its mean and covariance."""
    points = np.random.default_rng(0).standard_normal((PROBES, dim))
    points -= points.mean(axis=0)
    if dim < PROBES:
        points = np.linalg.qr(points)[0] * PROBES**0.5
    return points


@full_precision
def spread(values: jax.Array) -> Spread:
    """Of whitened observations `(points, m)`: their covariance, and for more numbers than points the average variance in its null space."""
    points, m = values.shape
    centred = (values - values.mean(axis=0)) / points**0.5
    rest = jnp.square(centred).sum(axis=0).mean()
    if m <= points:
        return Spread(*principal_axes(centred.T @ centred), rest)
    axes, variance = principal_axes(centred @ centred.T)
    real = variance > jnp.finfo(values.dtype).eps * points * variance[-1]
    # an axis without variance has no direction
    return Spread(jnp.where(real, centred.T @ axes, 0) / jnp.sqrt(jnp.where(real, variance, 1)), variance, rest)


def guide(velocity: Velocity, misfit: Callable[[jax.Array], jax.Array], spread: Spread, inflation: float = 1.0) -> Velocity:
    """The velocity of p(x₀) p(y | x₀), roughly, from that of p(x₀): v − tan φ ∇_u log p(y | u), p(y | u) ≈ N(y; A(D(u)), S(φ)).

    S(φ) = R + γ sin² φ Cov[A(x₀)]: while x₀ is known up to noise, so is what it predicts, and sin² φ is the share of its variance that u
    leaves open if x₀ is standard normal. There, and for a linear A, it is exact with γ = 1; otherwise it is an approximation. Reference:
    Rozet & Louppe 2023, *Score-based data assimilation*, equation 16, whose Γ is the covariance here; γ = 0 is diffusion posterior
    sampling (Chung et al. 2023), which the samplers here cannot follow where the noise is small.

    Args:
        velocity: of the prior.
        misfit: x₀ `(*state,)` → R^{-1/2} (A(x₀) − y) `(m,)`, 0 where nothing is observed.
        spread: of R^{-1/2} A(x₀) under the prior.
        inflation: γ.
    """

    def bent(u: jax.Array, angle: jax.Array) -> jax.Array:
        def predicted(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            v = velocity(u, angle)
            return misfit(denoised(lambda *_: v, u, angle)), v

        r, pull, v = jax.vjp(predicted, u, has_aux=True)
        (slope,) = pull(spread.whiten(r, inflation * jnp.square(jnp.sin(angle))))
        return v + jnp.tan(angle) * slope

    return bent
