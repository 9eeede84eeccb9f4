"""The cores of a CPU side by side: a compiled program runs on one of them at a time, several programs at once on several."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class OverCores:
    """`jax.jit` of function(rows, *shared) ↦ rows, in as many parts as the CPU has cores, each in a thread; on an accelerator in one.

    XLA runs loops and small operations on a single thread. Rows must not see each other; the last part is filled up with the last row.

    Args:
        function: a tree of arrays `(n, …)` and anything else ↦ a tree of arrays of numbers `(n, …)`.

    Example:
        >>> OverCores(lambda rows, factor: factor * rows)(jnp.arange(3.0), 2.0)
        Array([0., 2., 4.], dtype=float32)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._jitted = jax.jit(function)
        self._compiled: dict[Any, Any] = {}

    def __call__(self, rows: Any, *shared: Any) -> Any:
        leaves = jax.tree.leaves(rows)
        n = leaves[0].shape[0]
        parts = min(cores(), n)
        if parts == 1 or any(isinstance(leaf, jax.core.Tracer) for leaf in [*leaves, *jax.tree.leaves(shared)]):
            return self._jitted(rows, *shared)
        of_part = np.minimum(np.arange(-(-n // parts) * parts), n - 1).reshape(parts, -1)
        each = [jax.tree.map(lambda leaf, which=which: leaf[which], rows) for which in of_part]
        run, double = self._program(each[0], *shared), jnp.result_type(float) == jnp.float64

        def in_thread(part: Any) -> Any:
            with jax.enable_x64(double):  # which each thread has of its own
                return jax.tree.map(np.asarray, run(part, *shared))

        with ThreadPoolExecutor(parts) as pool:
            done = list(pool.map(in_thread, each))
        return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:n]), *done)

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
