"""The cores of a CPU side by side: a compiled program runs on one of them at a time, several programs at once on several."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state

OUTSIDE = get_opaque_trace_state(convention="nnx")  # of any transformation


def over_cores(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` of function(rows, *shared) ↦ rows, in a part for each core of a CPU and a thread for each part; on an accelerator in one.

    XLA runs loops and small operations on a single thread. Rows must not see each other; the last part is filled up with the last row.
    Callbacks in it are called from several threads at once. `VARDAX_FLAX_CORES=1` in the environment keeps everything on one.

    Args:
        function: a tree of arrays `(n, …)`, and other arrays ↦ a tree of arrays of numbers `(n, …)`.
        options: of `jax.jit`; static arguments are passed by keyword.

    Example:
        >>> over_cores(lambda rows, factor: factor * rows)(jnp.arange(3.0), 2.0)
        Array([0., 2., 4.], dtype=float32)
    """
    jitted = jax.jit(function, **options)

    @functools.wraps(function)
    def call(rows: Any, *shared: Any, **static: Any) -> Any:
        n = jax.tree.leaves(rows)[0].shape[0]
        if min(cores(), n) <= 1 or get_opaque_trace_state(convention="nnx") != OUTSIDE:
            return jitted(rows, *shared, **static)
        size = -(-n // cores())
        of_part = np.minimum(np.arange(-(-n // size) * size), n - 1).reshape(-1, size)
        parts = [jax.tree.map(lambda leaf, which=which: leaf[which], rows) for which in of_part]
        run = jitted.lower(parts[0], *shared, **static).compile()  # here, under the settings of this thread; once for each form
        double = jnp.result_type(float) == jnp.float64

        def in_thread(part: Any) -> Any:
            with jax.enable_x64(double):  # which each thread has of its own
                return jax.tree.map(np.asarray, run(part, *shared))

        with ThreadPoolExecutor(len(parts) - 1) as pool:  # this thread does a part too, for starting another takes milliseconds
            others = [pool.submit(in_thread, part) for part in parts[1:]]
            done = [in_thread(parts[0]), *(other.result() for other in others)]
        return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:n]), *done)

    return call


def cores() -> int:
    """How many this process may use; 1 where the work is an accelerator's."""
    if jax.default_backend() != "cpu":
        return 1
    told = os.environ.get("VARDAX_FLAX_CORES")
    if told:
        return max(1, int(told))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
