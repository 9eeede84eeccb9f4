"""Gaps in series."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def interpolate_in_time(y: jax.Array, mask: jax.Array) -> jax.Array:
    """Each component of `(time, *rest)` linear between its observed times, constant beyond the first and last, 0 if it has none.

    Args:
        y: values, ignored where `mask` is 0.
        mask: 1 where observed, same shape.

    Example:
        >>> interpolate_in_time(jnp.array([0.0, 5.0, 2.0]), jnp.array([1, 0, 1]))
        Array([0., 1., 2.], dtype=float32)
    """
    seen, n = mask > 0, y.shape[0]
    times = jnp.arange(n).reshape(-1, *(1,) * (y.ndim - 1))
    before = jax.lax.cummax(jnp.where(seen, times, -1), axis=0)
    after = jax.lax.cummin(jnp.where(seen, times, n), axis=0, reverse=True)
    # beyond the ends, both neighbours are the one there is
    left, right = jnp.where(before < 0, after, before), jnp.where(after >= n, before, after)
    values = jnp.where(seen, y, 0)
    at = lambda i: jnp.take_along_axis(values, jnp.clip(i, 0, n - 1), axis=0)  # noqa: E731
    share = jnp.where(right > left, (times - left) / jnp.maximum(right - left, 1), 0)
    return jnp.where(seen.any(axis=0), (1 - share) * at(left) + share * at(right), 0)
