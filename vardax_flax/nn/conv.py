"""Convolutions and residual networks of them on 1-D and 2-D grids."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn.stack import make_stack, scan_stack
from vardax_flax.ops.grid_conv import grid_conv

Padding = str | tuple[str, ...]  # "CIRCULAR" (periodic domain) or "SAME" (zeros), of all axes or of each


class GridConv(nnx.Module):
    """A convolution on a grid `(*batch, *grid, in) → (*batch, *grid, out)`, by `ops.grid_conv`.

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
        self.periodic = tuple(one == "CIRCULAR" for one in each)
        init: Any = nnx.initializers.zeros_init() if zero else nnx.initializers.lecun_normal()
        self.product = nnx.Linear(self.size**self.rank * in_features, out_features, kernel_init=init, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        kernel, bias = self.product.kernel[...], self.product.bias
        dtype = jnp.result_type(h, kernel)
        reach = ((self.size - 1) // 2, self.size // 2)
        rows = h.reshape(-1, *h.shape[-self.rank - 1 :]).astype(dtype)
        rows = jnp.pad(rows, [(0, 0), *(reach if wrap else (0, 0) for wrap in self.periodic), (0, 0)], mode="wrap")
        kernel = kernel.reshape(*(self.size,) * self.rank, -1, kernel.shape[-1]).astype(dtype)
        out = grid_conv(rows, kernel, tuple((0, 0) if wrap else reach for wrap in self.periodic))
        assert bias is not None
        return out.reshape(*h.shape[:-1], out.shape[-1]) + bias[...]


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
