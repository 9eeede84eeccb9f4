"""Convolutions and residual networks of them on 1-D and 2-D grids."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn.stack import make_stack, scan_stack

Padding = str | tuple[str, ...]  # "CIRCULAR" (periodic domain) or "SAME" (zeros), of all axes or of each


class GridConv(nnx.Module):
    """A convolution on a grid `(*batch, *grid, in) → (*batch, *grid, out)`, as one product of the kernel with all windows side by side.

    XLA differentiates a convolution inside a loop, where a training step lives, ten and more times slower on a CPU than outside; a product
    has no such trouble.

    Args:
        grid_rank: axes of the grid.
        in_features, out_features: channels.
        kernel_size: points along each axis.
        padding: "CIRCULAR" for a periodic domain, "SAME" for zeros outside; or one of them for each axis.
        zero: whether the kernel starts at zero.
    """

    def __init__(
        self, grid_rank: int, in_features: int, out_features: int, kernel_size: int, padding: Padding, *,
        zero: bool = False, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.rank, self.size = grid_rank, kernel_size
        each = (padding,) * grid_rank if isinstance(padding, str) else padding
        self.modes: Any = tuple("wrap" if one == "CIRCULAR" else "constant" for one in each)
        init: Any = nnx.initializers.zeros_init() if zero else nnx.initializers.lecun_normal()
        self.product = nnx.Linear(self.size**self.rank * in_features, out_features, kernel_init=init, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        grid = h.shape[-self.rank - 1 : -1]
        padded = h
        for mode in sorted(set(self.modes)):  # axes of one kind at once
            reach = [((self.size - 1) // 2, self.size // 2) if mode == own else (0, 0) for own in self.modes]
            padded = jnp.pad(padded, [(0, 0)] * (h.ndim - self.rank - 1) + reach + [(0, 0)], mode=mode)
        windows = [
            padded[(..., *(slice(i, i + n) for i, n in zip(corner, grid, strict=True)), slice(None))]
            for corner in itertools.product(range(self.size), repeat=self.rank)
        ]
        return self.product(jnp.concatenate(windows, axis=-1))


class ConvBlock(nnx.Module):
    """h ← h + conv(silu(conv(silu(norm h)))) on a grid with the channels last; starts as the identity."""

    def __init__(self, grid_rank: int, channels: int, kernel_size: int, padding: Padding, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(channels, rngs=rngs)
        self.inner = GridConv(grid_rank, channels, channels, kernel_size, padding, rngs=rngs)
        self.outer = GridConv(grid_rank, channels, channels, kernel_size, padding, zero=True, rngs=rngs)

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
        self.first = GridConv(grid_rank, in_features, channels, kernel_size, padding, rngs=rngs)
        self.blocks = make_stack(lambda r: ConvBlock(grid_rank, channels, kernel_size, padding, rngs=r), depth, rngs) if depth else None

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.first(x)
        return h if self.blocks is None else scan_stack(self.blocks, lambda block, h: block(h), h)


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
