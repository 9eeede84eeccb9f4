"""A fixed bijection that bounds what a single outlier can do, and how far a draw can stray."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def compress_tails(z: jax.Array, bound: float, reach: jax.Array) -> tuple[jax.Array, jax.Array]:
    """y = z where |z| ≤ b, else sign(z) (b + log(1 + t)) with t = |z| − b up to t = reach, then straight on; and log |dy/dz|, elementwise.

    One state in ten thousand that lies a hundred thousand standard deviations out along a thin axis no longer decides the gradient of its
    batch. Without a reach, what is Gaussian in y would have draws at e^y.

    Example:
        >>> compress_tails(jnp.array([0.5, 100.0]), 6.0, jnp.array(1e3))[0]
        Array([ 0.5     , 10.553877], dtype=float32)
    """
    beyond = jnp.maximum(jnp.abs(z) - bound, 0)
    log_slope = -jnp.log1p(jnp.minimum(beyond, reach))
    far = jnp.maximum(beyond - reach, 0) / (1 + reach)
    return jnp.clip(z, -bound, bound) + jnp.sign(z) * (far - log_slope), log_slope


def expand_tails(y: jax.Array, bound: float, reach: jax.Array) -> jax.Array:
    """z of y: the inverse of `compress_tails`.

    Example:
        >>> expand_tails(jnp.array([0.5]), 6.0, jnp.array(1e3))
        Array([0.5], dtype=float32)
    """
    beyond, edge = jnp.maximum(jnp.abs(y) - bound, 0), jnp.log1p(reach)
    out = jnp.expm1(jnp.minimum(beyond, edge)) + jnp.maximum(beyond - edge, 0) * (1 + reach)
    return jnp.clip(y, -bound, bound) + jnp.sign(y) * out
