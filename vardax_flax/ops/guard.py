"""Derivatives that stay numbers where a value was replaced because it was not one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def finite_cotangents(tree: Any) -> Any:
    """The same values; in reverse mode, what comes back to them is zero where it is not finite.

    For the inputs of a branch that `jnp.where` may discard: zero times the infinite derivative of what was discarded is NaN.

    Example:
        >>> safe_log = lambda x: jnp.where(x > 0, jnp.log(finite_cotangents(x)), 0.0)
        >>> jax.grad(safe_log)(0.0)
        Array(0., dtype=float32, weak_type=True)
    """

    def one(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        # a linear solve, here by the identity, is the one operation whose transpose may be given and which also has a forward mode
        return jax.lax.custom_linear_solve(
            lambda tangent: tangent, leaf, lambda _, right: right, lambda _, back: jnp.where(jnp.isfinite(back), back, 0)
        )

    return jax.tree.map(one, tree)
