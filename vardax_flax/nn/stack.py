"""Layers of one shape, stacked and scanned: compile time does not grow with depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def make_stack(make: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> Any:
    """n modules of one shape with their parameters stacked along a new first axis.

    Example:
        >>> blocks = make_stack(lambda r: Block(64, rngs=r), 4, rngs)
        >>> y = scan_stack(blocks, lambda block, carry: block(carry), x)
    """

    @nnx.split_rngs(splits=n)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return build(rngs)


def scan_stack(stack: nnx.Module, apply: Callable[[Any, Any], Any], carry: Any, *, reverse: bool = False) -> Any:
    """carry ← apply(layer, carry) for every layer of a stack, in one `lax.scan`."""
    graphdef, state = nnx.split(stack)

    def body(carry: Any, layer_state: Any) -> tuple[Any, None]:
        return apply(nnx.merge(graphdef, layer_state), carry), None

    return jax.lax.scan(body, carry, state, reverse=reverse)[0]
