"""A fixed bijection that bounds what a single outlier can do."""

from __future__ import annotations

import jax
import jax.numpy as jnp

LARGEST = 60.0  # e^60 is finite in float32


def compress_tails(z: jax.Array, bound: float) -> tuple[jax.Array, jax.Array]:
    """y = z where |z| ≤ b, else sign(z) (b + log(1 + |z| − b)), and log |dy/dz|, elementwise.

    What is Gaussian in y has polynomial tails in z: one state in ten thousand that lies a hundred standard deviations out no longer
    decides the gradient of its batch.

    Example:
        >>> compress_tails(jnp.array([0.5, 100.0]), 6.0)[0]
        Array([ 0.5     , 10.553877], dtype=float32)
    """
    beyond = jnp.log1p(jnp.maximum(jnp.abs(z) - bound, 0))
    return jnp.clip(z, -bound, bound) + jnp.sign(z) * beyond, -beyond


def expand_tails(y: jax.Array, bound: float) -> jax.Array:
    """z of y: the inverse of `compress_tails`.

    Example:
        >>> expand_tails(jnp.array([0.5]), 6.0)
        Array([0.5], dtype=float32)
    """
    beyond = jnp.clip(jnp.abs(y) - bound, 0, LARGEST)
    return jnp.clip(y, -bound, bound) + jnp.sign(y) * jnp.expm1(beyond)
