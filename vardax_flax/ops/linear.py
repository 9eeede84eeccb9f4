"""Linear systems that are known only through a product: conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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
    scale = jnp.ones_like(b) if preconditioner is None else preconditioner
    first = scale * b
    start = (b * first).sum()
    least = jnp.finfo(b.dtype).eps ** 2 * start  # below it the residual is rounding, and its ratios have no derivatives

    def step(carry: Any, _: None) -> tuple[Any, None]:
        x, residual, direction, size = carry
        along = operator(direction)
        goes_on = size > least
        length = jnp.where(goes_on, size, 0) / jnp.where(goes_on, (direction * along).sum(), 1)
        x, residual = x + length * direction, residual - length * along
        scaled = scale * residual
        new_size = (residual * scaled).sum()
        conjugate = jnp.where(goes_on, new_size, 0) / jnp.where(goes_on, size, 1)
        return (x, residual, scaled + conjugate * direction, new_size), None

    return jax.lax.scan(step, (jnp.zeros_like(b), b, first, start), length=steps)[0][0]
