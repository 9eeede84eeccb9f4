"""Many rows, some at a time: memory and cache are kept, and the work on a block is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

PRIME_ROWS = 10_007  # a prime tells arrays that have the axis of the rows from all others


def map_blocks(function: Callable[[Any], Any], rows: Any, most: int) -> Any:
    """function(rows) of a tree of arrays `(n, …)`, at most so many rows at a time, in blocks of one size.

    `jax.lax.map` with a `batch_size` compiles the function a second time for the rows that are left over; here the last block is filled up
    with its last row instead.

    Args:
        function: a tree `(m, …)` → a tree `(m, …)`, rows that do not see each other.
        rows: what it is asked about.
        most: rows at a time.

    Example:
        >>> map_blocks(jnp.square, jnp.arange(5.0), 2)
        Array([ 0.,  1.,  4.,  9., 16.], dtype=float32)
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if n <= most:
        return function(rows)
    rounds = -(-n // most)
    size = -(-n // rounds)
    blocks = jax.tree.map(lambda leaf: lengthen(leaf, rounds * size, 0).reshape(rounds, size, *leaf.shape[1:]), rows)
    out = jax.lax.map(function, blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(rounds * size, *leaf.shape[2:])[:n], out)


def widest(function: Callable[..., Any], *rows: Any) -> int:
    """Numbers for each row in the largest array that function(*rows), of single rows, computes; it is traced and nothing is computed.

    Args:
        function: of trees of arrays.
        rows: such trees of shapes, without the axis of the rows.

    Example:
        >>> widest(lambda x: (x[:, None] * x).sum(), jax.ShapeDtypeStruct((7,), float))
        49
    """
    many = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((PRIME_ROWS, *leaf.shape), leaf.dtype), rows)
    return _widest(jax.make_jaxpr(jax.vmap(function))(*many).jaxpr) // PRIME_ROWS


def _widest(jaxpr: Jaxpr) -> int:
    most = 0
    for equation in jaxpr.eqns:
        sizes = (getattr(made.aval, "size", 0) for made in equation.outvars)
        inside = map(_widest, jaxprs_in_params(equation.params))
        most = max([most, *inside, *(size for size in sizes if size % PRIME_ROWS == 0)])
    return most


def lengthen(array: jax.Array, size: int, axis: int) -> jax.Array:
    """Filled up with its last element.

    Example:
        >>> lengthen(jnp.arange(2), 4, 0)
        Array([0, 1, 1, 1], dtype=int32)
    """
    missing = size - array.shape[axis]
    if not missing:
        return array
    last = jax.lax.slice_in_dim(array, array.shape[axis] - 1, None, axis=axis)
    return jnp.concatenate([array, jnp.repeat(last, missing, axis=axis)], axis=axis)
