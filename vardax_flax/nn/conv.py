"""Convolutional residual networks on 1-D and 2-D grids."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn.stack import make_stack, scan_stack

Padding = str  # "CIRCULAR" (periodic domain) or "SAME" (zeros)


class ConvBlock(nnx.Module):
    """h ← h + conv(silu(conv(silu(norm h)))) on a grid with the channels last; starts as the identity."""

    def __init__(self, channels: int, kernel: tuple[int, ...], padding: Padding, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(channels, rngs=rngs)
        self.inner = nnx.Conv(channels, channels, kernel, padding=padding, rngs=rngs)
        self.outer = nnx.Conv(channels, channels, kernel, padding=padding, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return h + self.outer(nnx.silu(self.inner(nnx.silu(self.norm(h)))))


class ConvNet(nnx.Module):
    """Fields to fields: `(*batch, *grid, in) → (*batch, *grid, channels)` through `depth` residual blocks.

    Args:
        grid_rank: 1 or 2.
        in_features: channels of the input.
        channels, depth, kernel_size: of the network.
        padding: "CIRCULAR" for a periodic domain, "SAME" for zeros outside.

    Example:
        >>> net = ConvNet(1, in_features=2, channels=8, depth=2, kernel_size=3, padding="CIRCULAR", rngs=nnx.Rngs(0))
        >>> net(jnp.zeros((4, 40, 2))).shape
        (4, 40, 8)
    """

    def __init__(
        self, grid_rank: int, *, in_features: int, channels: int, depth: int, kernel_size: int, padding: Padding, rngs: nnx.Rngs
    ) -> None:
        self.grid_rank = grid_rank
        kernel = (kernel_size,) * grid_rank
        self.first = nnx.Conv(in_features, channels, kernel, padding=padding, rngs=rngs)
        self.blocks = make_stack(lambda r: ConvBlock(channels, kernel, padding, rngs=r), depth, rngs) if depth else None

    def __call__(self, x: jax.Array) -> jax.Array:
        grid = x.shape[-self.grid_rank - 1 : -1]
        lead = x.shape[: -self.grid_rank - 1]
        h = self.first(x.reshape(-1, *grid, x.shape[-1]))
        if self.blocks is not None:
            h = scan_stack(self.blocks, lambda block, h: block(h), h)
        return h.reshape(*lead, *grid, h.shape[-1])


def pool_grid(h: jax.Array, grid_rank: int, cells: int) -> jax.Array:
    """Average a field `(*batch, *grid, channels)` over at most `cells` blocks a side and flatten: coarse positions survive.

    A grid that the number of blocks does not divide is cut into blocks that differ by one in size.
    """
    for axis in range(-grid_rank - 1, -1):
        size = h.shape[axis]
        n = min(cells, size)
        block = (jnp.arange(size) * n) // size
        average = jax.nn.one_hot(block, n, dtype=h.dtype)
        h = jnp.moveaxis(jnp.moveaxis(h, axis, -1) @ (average / average.sum(axis=0)), -1, axis)
    return h.reshape(*h.shape[: -grid_rank - 1], -1)
