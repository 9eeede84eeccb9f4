"""Fields larger than a patch: solved patch by patch, and put together with weights that overlap."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.batch import Batch, check_batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Key
from vardax_flax.core.remember import traced


def random_patch(batch: Batch, key: Key, patch: tuple[int, ...]) -> Batch:
    """The same random window of all elements, along the last axes of every field; an axis that is no longer than its patch stays whole."""
    rank = len(patch)
    sizes = batch.target.shape[-rank:]
    width = [min(size, wanted) for size, wanted in zip(sizes, patch, strict=True)]
    keys = jax.random.split(key, rank)
    start = [jax.random.randint(k, (), 0, size - w + 1) for k, size, w in zip(keys, sizes, width, strict=True)]

    def cut(field: Any) -> Any:
        lead = field.ndim - rank
        return jax.lax.dynamic_slice(field, (*(0,) * lead, *start), (*field.shape[:lead], *width))

    return jax.tree.map(cut, batch._replace(coords=None))


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

    All patches have one shape and are solved one after the other in one program, whose memory is that of a patch; for a solver it is
    compiled once for each shape of the field.

    Args:
        solve: a batch of patches → their states, of the shape of `input`; a `FourDVarNet` for instance.
        batch: `input` and `mask` `(B, *state)`.
        patch: size along the last axes of a state.
        stride: between patches along each of them, half a patch by default.

    Raises:
        ConfigError: a patch larger than the field, or a stride larger than the patch.
        ValueError: a mask of another shape or other than 0 or 1, an observation that is not finite.

    Example:
        >>> overlap_add(model, batch, patch=(64, 64)).shape                 # fields of 200 × 300
        (4, 15, 200, 300)
    """
    sizes = batch.input.shape[-len(patch) :]
    stride = tuple(max(1, p // 2) for p in patch) if stride is None else stride
    fits = all(1 < p <= size for p, size in zip(patch, sizes, strict=True))
    require(fits, f"patches of 2 to {sizes} points", patch, "pass smaller ones")
    require(all(0 < s <= p for s, p in zip(stride, patch, strict=True)), f"strides of 1 to {patch} points", stride, "pass smaller ones")
    batch = batch._replace(target=None)
    if not traced(batch):
        batch = check_batch(batch, allow_unobserved=True)
    if isinstance(solve, nnx.Module):
        graphdef, state = nnx.split(solve)
        return _of_solver(graphdef, patch, stride)(state, batch)
    return _overlap_add(solve, batch, patch, stride)


@functools.lru_cache(maxsize=32)
def _of_solver(graphdef: Any, patch: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    return jax.jit(lambda state, batch: _overlap_add(nnx.merge(graphdef, state), batch, patch, stride))


def _overlap_add(solve: Callable[[Batch], jax.Array], batch: Batch, patch: tuple[int, ...], stride: tuple[int, ...]) -> jax.Array:
    sizes = batch.input.shape[-len(patch) :]
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
        new = (solve(jax.tree.map(cut, batch)) * weight, jnp.asarray(weight, total[1].dtype))
        return jax.tree.map(lambda sum, own: jax.lax.dynamic_update_slice(sum, cut(sum) + own, at(sum, corner)[0]), total, new), None

    dtype = batch.input.dtype
    total, weights = jax.lax.scan(add, (jnp.zeros(batch.input.shape, dtype), jnp.zeros(sizes, dtype)), corners)[0]
    return total / weights
