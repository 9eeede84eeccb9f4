"""The cores of a CPU side by side: a compiled program runs on one of them at a time, several programs at once on several."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from vardax_flax.ops.blocks import lengthen


class OverCores:
    """`jax.jit` of function(rows, *shared) ↦ rows, in as many parts as the CPU has cores, each in a thread; on an accelerator in one.

    XLA runs loops and small operations on a single thread. Rows must not see each other; the last part is filled up with its last row.

    Args:
        function: a tree of arrays `(n, …)` and anything else ↦ a tree of arrays `(n, …)`.

    Example:
        >>> OverCores(lambda rows, factor: factor * rows)(jnp.arange(3.0), 2.0)
        Array([0., 2., 4.], dtype=float32)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._jitted = jax.jit(function)
        self._compiled: dict[Any, Any] = {}

    def __call__(self, rows: Any, *shared: Any) -> Any:
        n = jax.tree.leaves(rows)[0].shape[0]
        parts = min(cores(), n)
        if parts == 1:
            return self._jitted(rows, *shared)
        size = -(-n // parts)
        longer = jax.tree.map(lambda leaf: lengthen(jnp.asarray(leaf), parts * size, 0), rows)
        each = [jax.tree.map(lambda leaf, i=i: leaf[i * size : (i + 1) * size], longer) for i in range(parts)]
        run = self._program(each[0], *shared)
        with ThreadPoolExecutor(parts) as pool:
            done = list(pool.map(lambda part: jax.block_until_ready(run(part, *shared)), each))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:n], *done)

    def _program(self, *arguments: Any) -> Any:
        """Compiled before the threads start, each of which would compile it again."""
        leaves, structure = jax.tree.flatten(arguments)
        form = structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves), jnp.result_type(float)
        if form not in self._compiled:
            self._compiled[form] = self._jitted.lower(*arguments).compile()
        return self._compiled[form]


def cores() -> int:
    """How many this process may use; 1 where the work is an accelerator's."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
