"""Fields larger than a patch: solved patch by patch, and put together with weights that overlap."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require


def _starts(size: int, patch: int, stride: int) -> list[int]:
    """Where patches start so that they cover an axis; the last one ends with it."""
    return [*range(0, size - patch, stride), size - patch]


def _triangle(patch: int) -> np.ndarray:
    """A weight of each point that is nowhere 0."""
    return np.minimum(np.arange(1, patch + 1), np.arange(patch, 0, -1)) / ((patch + 1) // 2)


def overlap_add(
    solve: Callable[[Batch], jax.Array], batch: Batch, patch: tuple[int, ...], stride: tuple[int, ...] | None = None
) -> jax.Array:
    """The analysis of fields larger than a patch: a mean of those of overlapping patches, weighted towards their middles.

    All patches have one shape and are solved one after the other in one program, whose memory is that of a patch.

    Args:
        solve: a batch of patches → their states, of the shape of `input`; a `FourDVarNet` for instance.
        batch: `input` and `mask` `(B, *state)`.
        patch: size along the last axes of a state.
        stride: between patches along each of them, half a patch by default.

    Raises:
        ConfigError: a patch larger than the field, or a stride larger than the patch.

    Example:
        >>> overlap_add(model, batch, patch=(64, 64)).shape                 # fields of 200 × 300
        (4, 15, 200, 300)
    """
    sizes = batch.input.shape[-len(patch) :]
    stride = tuple(max(1, p // 2) for p in patch) if stride is None else stride
    fits = all(1 < p <= size for p, size in zip(patch, sizes, strict=True))
    require(fits, f"patches of 2 to {sizes} points", patch, "pass smaller ones")
    require(all(0 < s <= p for s, p in zip(stride, patch, strict=True)), f"strides of 1 to {patch} points", stride, "pass smaller ones")
    weight = np.ones(())
    for p in patch:
        weight = weight[..., None] * _triangle(p)
    axes = [_starts(size, p, s) for size, p, s in zip(sizes, patch, stride, strict=True)]
    corners = jnp.asarray(list(itertools.product(*axes)))

    def at(field: Any, corner: jax.Array) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        lead = field.ndim - len(patch)
        return (*(0,) * lead, *corner), (*field.shape[:lead], *patch)

    def add(total: tuple[jax.Array, jax.Array], corner: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        cut = lambda field: jax.lax.dynamic_slice(field, *at(field, corner))  # noqa: E731
        new = (solve(jax.tree.map(cut, part)) * weight, jnp.asarray(weight, total[1].dtype))
        return jax.tree.map(lambda sum, own: jax.lax.dynamic_update_slice(sum, cut(sum) + own, at(sum, corner)[0]), total, new), None

    part = batch._replace(target=None, coords=None)
    dtype = jnp.result_type(float)
    start = jnp.zeros(batch.input.shape, dtype), jnp.zeros(sizes, dtype)
    total, weights = jax.jit(lambda start: jax.lax.scan(add, start, corners)[0])(start)
    return total / weights
