"""Where satellites look: nadir tracks over a periodic square of pixels, day by day."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# measured on the masks of a reference data set: columns a row, columns a day as a fraction of the width
SLOPES, SHIFTS = (0.35, 0.6), (0.17, 0.36)


def nadir_tracks(key: jax.Array, size: int, days: int, satellites: int, pass_rate: float) -> jax.Array:
    """1 along the tracks of a window, else 0, `(days, size, size)`.

    A satellite crosses the square once upwards and once downwards a day, along straight lines one pixel wide whose place moves on by the
    same amount each day; some passes are missing.

    Args:
        size: pixels a side.
        days: of the window.
        satellites: how many.
        pass_rate: probability that a pass was observed.

    Example:
        >>> nadir_tracks(jax.random.key(0), 64, 15, 4, 0.65).shape
        (15, 64, 64)
    """
    key_slope, key_shift, key_start, key_pass = jax.random.split(key, 4)
    each = (satellites,)
    slope = jax.random.uniform(key_slope, each, minval=SLOPES[0], maxval=SLOPES[1])
    shift = jax.random.uniform(key_shift, each, minval=SHIFTS[0] * size, maxval=SHIFTS[1] * size)
    start = jax.random.uniform(key_start, each, maxval=size)
    seen = jax.random.bernoulli(key_pass, pass_rate, (*each, days, 2))
    day, row = jnp.arange(days), jnp.arange(size)
    # upwards and, half the square away, downwards: (satellite, day, direction, row)
    first = (start[:, None] + shift[:, None] * day)[..., None] + jnp.array([0.0, size / 2])
    columns = first[..., None] + slope[:, None, None, None] * jnp.array([1.0, -1.0])[:, None] * row
    columns = jnp.round(columns).astype(int) % size
    columns = jnp.where(seen[..., None], columns, -1)
    # compared rather than scattered, which a CPU does thirty times slower
    return (columns[..., None] == row).any(axis=(0, 2)).astype(start.dtype)
