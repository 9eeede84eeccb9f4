"""Linear systems that are known only through a product: conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Krylov(NamedTuple):
    """An iterate of conjugate gradients.

    Args:
        x: the solution so far.
        residual: b − A x.
    """

    x: jax.Array
    residual: jax.Array


def conjugate_gradient(
    operator: Callable[[jax.Array], jax.Array], b: jax.Array, steps: int, *, preconditioner: jax.Array | None = None
) -> jax.Array:
    """x ≈ A⁻¹ b after so many steps of preconditioned conjugate gradients from 0, A symmetric positive definite.

    After k steps x minimises ½ xᵀ A x − bᵀ x over the k-th Krylov space (Hestenes & Stiefel 1952). The number of steps is fixed, so the
    cost is known and everything is differentiable; once the residual is 0, x stays as it is.

    Args:
        operator: x → A x, of one shape.
        b: right-hand side.
        steps: products with A.
        preconditioner: diagonal of P ≈ A⁻¹, of the shape of b.

    Example:
        >>> x = conjugate_gradient(lambda x: 2 * x, jnp.ones(3), steps=1)
    """
    step, start, _ = _iteration(operator, b, preconditioner, tolerance=jnp.finfo(b.dtype).eps)
    return jax.lax.scan(lambda carry, _: (step(carry), None), start, length=steps)[0][0]


def truncated_conjugate_gradient(
    operator: Callable[[jax.Array], jax.Array], b: jax.Array, steps: int, *, tolerance: float, preconditioner: jax.Array | None = None
) -> Krylov:
    """`conjugate_gradient` that ends as soon as ‖b − A x‖ ≤ tolerance ‖b‖ (in the norm of P), or after `steps`.

    Every iterate lowers ½ xᵀ A x − bᵀ x, so one cut short is still a direction of descent. A direction of no positive curvature, or of a
    product that is not finite, ends it where it stands. Its length depends on the data: no reverse-mode derivative.

    Args:
        operator, b, preconditioner: as `conjugate_gradient`.
        steps: products with A at most.
        tolerance: relative size of the residual.

    Example:
        >>> truncated_conjugate_gradient(lambda x: 2 * x, jnp.ones(3), 10, tolerance=1e-6).x
        Array([0.5, 0.5, 0.5], dtype=float32)
    """
    step, start, going_on = _iteration(operator, b, preconditioner, tolerance)
    (x, residual, *_), _ = jax.lax.while_loop(
        lambda carry: going_on(carry[0]) & (carry[1] < steps), lambda carry: (step(carry[0]), carry[1] + 1), (start, jnp.zeros((), int))
    )
    return Krylov(x, residual)


def _iteration(operator: Callable[[jax.Array], jax.Array], b: jax.Array, preconditioner: jax.Array | None, tolerance: Any) -> Any:
    """The step, the start and whether to go on, of a carry (x, residual, direction, residual · P residual)."""
    scale = jnp.ones_like(b) if preconditioner is None else preconditioner
    first = scale * b
    start = (b * first).sum()
    least = tolerance**2 * start  # at eps the residual is rounding, and its ratios have no derivatives

    def going_on(carry: Any) -> jax.Array:
        return carry[3] > least

    def step(carry: Any) -> Any:
        x, residual, direction, size = carry
        along = operator(direction)
        curvature = (direction * along).sum()
        goes_on = (size > least) & (curvature > 0) & jnp.isfinite(curvature)
        length = jnp.where(goes_on, size, 0) / jnp.where(goes_on, curvature, 1)
        # what is not taken must not enter: 0 × infinity is no number
        x, residual = x + length * direction, residual - length * jnp.where(goes_on, along, 0)
        scaled = scale * residual
        new_size = jnp.where(goes_on, (residual * scaled).sum(), 0)
        conjugate = new_size / jnp.where(goes_on, size, 1)
        return x, residual, scaled + conjugate * direction, new_size

    return step, (jnp.zeros_like(b), b, first, start), going_on
