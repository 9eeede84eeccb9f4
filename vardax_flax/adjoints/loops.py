"""Loops whose gradient is not that of every step: a nest of checkpointed scans, and a while loop with its last k steps only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Step = Callable[[Any, Any], Any]  # (args, carry) ↦ carry


def repeat(step: Step, args: Any, carry: Any, length: int) -> Any:
    """carry ← step(args, carry), so many times, in one scan."""
    return jax.lax.scan(lambda carry, _: (step(args, carry), None), carry, None, length=length)[0]


def block_size(length: int) -> int:
    """Steps of an inner scan: near √length, and where possible a divisor, so that no step is wasted."""
    root = math.isqrt(max(length - 1, 0)) + 1
    near = range(max(1, (root + 1) // 2), min(length, 2 * root) + 1)
    return min(near, key=lambda size: (-length % size, abs(size - root)), default=1)


def checkpointed(step: Step, args: Any, carry: Any, length: int) -> Any:
    """`repeat` that keeps about 2 √length carries and the inside of one step for the backward pass, which runs each step twice more.

    Two scans, of which both bodies are rematerialised; steps that a length without divisor lacks are skipped.
    """
    size = block_size(length)
    exact = length % size == 0

    def inner(carry: Any, i: jax.Array) -> tuple[Any, None]:
        if exact:
            return step(args, carry), None
        return jax.lax.cond(i < length, lambda carry: step(args, carry), lambda carry: carry, carry), None

    # inside a scan nothing is merged with its forward pass, so the barrier that would prevent it only costs
    inner = jax.checkpoint(inner, prevent_cse=False)
    outer = jax.checkpoint(lambda carry, rows: (jax.lax.scan(inner, carry, rows)[0], None), prevent_cse=False)
    rows = jnp.arange(-(-length // size) * size).reshape(-1, size)
    return jax.lax.scan(outer, carry, rows)[0]


def last_steps(k: int) -> Callable[..., Any]:
    """A while loop `(cond, body, carry, max_steps=)` that is differentiated through its last k steps: earlier ones count as given.

    It runs to its end without a gradient, with the k latest carries in a ring, then repeats from the oldest of them.
    """
    wanted = k

    def while_loop(cond: Callable[[Any], Any], body: Callable[[Any], Any], carry: Any, *, max_steps: int | None = None, **_: Any) -> Any:
        k = wanted if max_steps is None else max(1, min(wanted, max_steps))
        hoisted, closed = jax.closure_convert(body, carry)  # what the body closes over must lose its gradient too
        still = jax.lax.stop_gradient((carry, closed))
        goes_on, seen = jax.closure_convert(cond, carry)
        seen = jax.lax.stop_gradient(seen)

        def more(loop: tuple[Any, Any, jax.Array]) -> jax.Array:
            limit = True if max_steps is None else loop[2] < max_steps
            return goes_on(loop[0], *seen) & limit

        def one(loop: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
            carry, ring, n = loop
            ring = jax.tree.map(lambda rows, leaf: rows.at[n % k].set(leaf), ring, carry)
            return hoisted(carry, *still[1]), ring, n + 1

        ring = jax.tree.map(lambda leaf: jnp.zeros((k, *jnp.shape(leaf)), jnp.result_type(leaf)), still[0])
        _, ring, n = jax.lax.while_loop(more, one, (still[0], ring, jnp.zeros((), int)))
        replayed = jnp.minimum(n, k)
        # a loop of fewer steps starts from its own carry, gradient and all
        start = jax.tree.map(lambda rows, leaf: jnp.where(n > k, jax.lax.stop_gradient(rows[(n - replayed) % k]), leaf), ring, carry)

        def again(carry: Any, i: jax.Array) -> tuple[Any, None]:
            return jax.lax.cond(i < replayed, lambda carry: hoisted(carry, *closed), lambda carry: carry, carry), None

        return jax.lax.scan(again, start, jnp.arange(k))[0]

    return while_loop
