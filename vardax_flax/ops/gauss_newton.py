"""Gauss–Newton minimisation of ½‖r(x, s)‖²: a step for each stage s, so that it runs inside a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import least_squares

Residual = Callable[[jax.Array, Any], jax.Array]
SCALES = (1.0, 0.5, 0.25, 0.0625)  # step lengths tried at once; none that goes uphill is taken


class Laplace(NamedTuple):
    """The Gaussian that fits exp(−½‖r(x)‖²) at a point.

    Args:
        x: the point `(dim,)`.
        factor: upper triangular R `(dim, dim)` with RᵀR = JᵀJ, its precision, and a positive diagonal.
    """

    x: jax.Array
    factor: jax.Array


@full_precision
def gauss_newton(residual: Residual, x: jax.Array, stages: Any) -> Laplace:
    """x ← x − a (JᵀJ)⁻¹ Jᵀ r(x, s), J = ∂r/∂x, with the best of a few step lengths a, for s in stages; and the factor of the last JᵀJ.

    Reference: Nocedal & Wright 2006, *Numerical optimization*, chapter 10. With r the whitened residuals of prior and observations the
    minimum is the posterior mode and JᵀJ its Gauss–Newton precision. J has one forward-mode column for each component of x.
    Stages that bring in the observations one after the other follow the global minimum of a chaotic window as it grows (Pires, Vautard &
    Talagrand 1996, *On extending the limits of variational assimilation in nonlinear chaotic systems*).

    The minimum is differentiated implicitly, dx = −H⁻¹ d(∇½‖r‖²) with the exact Hessian H, whatever the iterations that found it; a factor
    follows from it. So the result has derivatives in whatever the residual depends on, in forward and in reverse mode.

    Args:
        residual: r, `(dim,), stage → (m,)`, m ≥ dim with J of full rank (true of anything that holds a proper Gaussian prior).
        x: first guess `(dim,)`.
        stages: arrays with one row for each step; the last is the problem to solve.

    Example:
        >>> mode = gauss_newton(lambda x, _: jnp.concatenate([x - 1, 2 * x - 1]), jnp.zeros(3), stages=jnp.arange(1)).x
    """
    eye = jnp.eye(x.size, dtype=x.dtype)
    last = jax.tree.map(lambda leaf: leaf[-1], stages)

    def linearise(x: jax.Array, stage: Any) -> tuple[jax.Array, jax.Array]:
        # value and all tangents in one pass through the model, which takes half the time of a pass for each
        # tangents as columns, so that what is done to a component is done to all of them at once
        return jax.vmap(lambda tangent: jax.jvp(lambda x: residual(x, stage), (x,), (tangent,)), in_axes=1, out_axes=(None, 1))(eye)

    def step(x: jax.Array, stage: Any) -> tuple[jax.Array, None]:
        values, jacobian = linearise(x, stage)
        direction, _ = least_squares(jacobian, -values)
        candidates = x[:, None] + direction[:, None] * jnp.asarray(SCALES, x.dtype)
        costs = jnp.square(jax.vmap(lambda x: residual(x, stage), in_axes=1, out_axes=1)(candidates)).sum(axis=0)
        best = jnp.argmin(jnp.where(jnp.isfinite(costs), costs, jnp.inf))
        return jnp.where(costs[best] <= jnp.square(values).sum(), candidates[:, best], x), None

    def slope(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: 0.5 * jnp.square(residual(x, last)).sum())(x)

    x = jax.lax.custom_root(slope, x, lambda _, x: jax.lax.scan(step, x, stages)[0], _solve_linear)
    values, jacobian = linearise(x, last)
    return Laplace(x, least_squares(jacobian, -values)[1])


def _solve_linear(hessian: Callable[[jax.Array], jax.Array], right: jax.Array) -> jax.Array:
    """H⁻¹ b from the product H v of a symmetric H."""

    def solve(hessian: Callable[[jax.Array], jax.Array], right: jax.Array) -> jax.Array:
        return least_squares(jax.vmap(hessian)(jnp.eye(right.size, dtype=right.dtype)), right)[0]

    return jax.lax.custom_linear_solve(hessian, right, solve, symmetric=True)
