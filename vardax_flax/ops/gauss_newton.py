"""Gauss–Newton minimisation of ½‖r(x)‖² for small states: a fixed number of steps, so that it runs inside a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

SCALES = (1.0, 0.5, 0.25, 0.0625)  # step lengths tried at once; none that goes uphill is taken


MAX_CURVATURE = 1e4
REACH = 1.5  # standard deviations at which curvature is measured


class Laplace(NamedTuple):
    """What is known of exp(−½‖r(x)‖²) at the end of the iteration.

    Args:
        x: the point reached `(dim,)`.
        factor: lower triangular L `(dim, dim)` with L Lᵀ = JᵀJ and a positive diagonal.
        curvature: `(dim, dim)`, row i the second difference of r along whitened axis i, in whitened axes: how the valley bends.
        gradient: `(dim,)` of the cost, in whitened axes: zero once converged.
    """

    x: jax.Array
    factor: jax.Array
    curvature: jax.Array
    gradient: jax.Array


def gauss_newton(residual: Callable[[jax.Array], jax.Array], x: jax.Array, steps: int) -> Laplace:
    """x ← x − a (JᵀJ)⁻¹ Jᵀ r(x), J = ∂r/∂x, with the best of a few step lengths a; and the Cholesky factor of JᵀJ at the end.

    Reference: Nocedal & Wright 2006, *Numerical optimization*, chapter 10. With r the whitened residuals of prior and observations the
    minimum is the posterior mode and JᵀJ its Gauss–Newton precision. J has one forward-mode column for each component of x.

    Args:
        residual: r, `(dim,) → (m,)`, m ≥ dim with J of full rank (true of anything that holds a proper Gaussian prior).
        x: first guess `(dim,)`.
        steps: of the iteration.

    Example:
        >>> mode = gauss_newton(lambda x: jnp.concatenate([x - 1, 2 * x - 1]), jnp.zeros(3), steps=1).x
    """

    def linearise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, push = jax.linearize(residual, x)
        jacobian = jax.vmap(push, out_axes=1)(jnp.eye(x.size, dtype=x.dtype))
        return values, jacobian

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        values, jacobian = linearise(x)
        q, r = jnp.linalg.qr(jacobian)  # of J itself: the condition number of JᵀJ is its square, too much for float32
        direction = -jax.scipy.linalg.solve_triangular(r, q.T @ values)
        candidates = x + jnp.asarray(SCALES, x.dtype)[:, None] * direction
        costs = jnp.square(jax.vmap(residual)(candidates)).sum(axis=-1)
        best = jnp.nanargmin(jnp.where(jnp.isfinite(costs), costs, jnp.inf))
        return jnp.where(costs[best] <= jnp.square(values).sum(), candidates[best], x), None

    x, _ = jax.lax.scan(step, x, length=steps)
    values, jacobian = linearise(x)
    q, r = jnp.linalg.qr(jacobian)
    sign = jnp.sign(jnp.diagonal(r))
    q, r = q * sign, r * sign[:, None]
    axes = REACH * jax.scipy.linalg.solve_triangular(r, jnp.eye(x.size, dtype=x.dtype)).T
    bend = jax.vmap(lambda axis: residual(x + axis) + residual(x - axis) - 2 * values)(axes) / REACH**2
    # far from the data a chaotic model may overflow at such a distance; then the valley counts as very bent, and no number is lost
    curvature = jnp.clip(jnp.nan_to_num(bend @ q, nan=MAX_CURVATURE), -MAX_CURVATURE, MAX_CURVATURE)
    return Laplace(x, r.T, curvature, jnp.clip(values @ q, -MAX_CURVATURE, MAX_CURVATURE))
