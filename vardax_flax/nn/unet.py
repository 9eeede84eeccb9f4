"""A U-Net on 1-D and 2-D grids that may also know a time, a context field and a context vector."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.config import require
from vardax_flax.nn.conv import GridConv
from vardax_flax.nn.time import HALF, time_features


class UNetBlock(nnx.Module):
    """h ← h + conv(silu((1 + a) conv(silu(norm h)) + b)), a and b linear in an embedding of time and vector; starts as the identity."""

    def __init__(self, channels: int, config: UNetConfig, embedding: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(channels, use_bias=False, use_scale=False, rngs=rngs)
        grid: Any = (len(config.grid), channels, channels, config.kernel_size, "CIRCULAR" if config.periodic else "SAME")
        self.inner = GridConv(*grid, rngs=rngs)
        self.outer = GridConv(*grid, zero=True, rngs=rngs)
        self.modulate = nnx.Linear(embedding, 2 * channels, rngs=rngs) if embedding else None

    def __call__(self, h: jax.Array, embedding: Any) -> jax.Array:
        inner = self.inner(nnx.silu(self.norm(h)))
        if self.modulate is not None:
            scale, shift = jnp.split(self.modulate(embedding), 2, axis=-1)
            grid = (1,) * (h.ndim - scale.ndim)
            scale, shift = (part.reshape(*part.shape[:-1], *grid, part.shape[-1]) for part in (scale, shift))
            inner = (1 + scale) * inner + shift
        return h + self.outer(nnx.silu(inner))


class UNet(nnx.Module):
    """Fields to fields over several resolutions: `(*batch, *grid, in)[, t, context field, vector] → (*batch, *grid, out)`.

    Residual blocks of two convolutions at each resolution, on the way down and on the way up; between resolutions 2 × 2 pixels become the
    channels of one and back, by linear maps, so that on a periodic domain the network commutes with shifts by 2^(levels − 1) pixels
    (Ronneberger, Fischer & Brox 2015; time as scale and shift as in Dhariwal & Nichol 2021). The last layer starts at zero.

    The leading axes broadcast: one time, context or vector serves many fields, and what the context field contributes is computed once.

    Args:
        config: grid, channels, depth, padding.
        in_features: channels of the field; 0 for a network of the context alone.
        out_features: channels of the result.
        context_channels: of the context field, 0 for none.
        vector_features: of the context vector, 0 for none.
        timed: whether it knows a time.

    Example:
        >>> net = UNet(UNetConfig(grid=(64, 64)), in_features=1, out_features=1, timed=True, rngs=nnx.Rngs(0))
        >>> net(jnp.zeros((8, 64, 64, 1)), jnp.zeros(8)).shape
        (8, 64, 64, 1)
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        in_features: int,
        out_features: int,
        context_channels: int = 0,
        vector_features: int = 0,
        timed: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        channels, cells = config.channels, 2 ** len(config.grid)
        width = 2 * channels[-1] if timed or vector_features else 0
        self.from_time = nnx.Linear(2 * HALF, width, rngs=rngs) if timed else None
        self.from_vector = nnx.Linear(vector_features, width, rngs=rngs) if vector_features else None
        self.from_x = nnx.Linear(in_features, channels[0], rngs=rngs) if in_features else None
        self.from_context = nnx.Linear(context_channels, channels[0], rngs=rngs) if context_channels else None

        def blocks(size: int, depth: int) -> Any:
            return nnx.List([UNetBlock(size, config, width, rngs=rngs) for _ in range(depth)])

        self.down = nnx.List([blocks(*sizes) for sizes in zip(channels, config.depth, strict=True)])
        self.shrink = nnx.List([nnx.Linear(cells * a, b, rngs=rngs) for a, b in zip(channels, channels[1:], strict=False)])
        self.grow = nnx.List([nnx.Linear(b, cells * a, rngs=rngs) for a, b in zip(channels, channels[1:], strict=False)])
        self.up = nnx.List([blocks(*sizes) for sizes in zip(channels[:-1], config.depth[:-1], strict=True)])
        self.last = nnx.Linear(channels[0], out_features, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(
        self, x: jax.Array | None, t: jax.Array | None = None, context: jax.Array | None = None, vector: jax.Array | None = None
    ) -> jax.Array:
        rank = len(self.config.grid)
        fields: Any = ((self.from_x, x), (self.from_context, context))
        parts = [net(field) for net, field in fields if net is not None]
        embedding = self._embedding(t, vector)
        lead = jnp.broadcast_shapes(*(p.shape[: -rank - 1] for p in parts), () if embedding is None else embedding.shape[:-1])
        h = jnp.broadcast_to(sum(parts, jnp.zeros(())), (*lead, *self.config.grid, self.config.channels[0]))
        kept = []
        for level, blocks in enumerate(self.down):
            if level:
                kept.append(h)
                h = self.shrink[level - 1](_cells_to_channels(h, rank))
            for block in blocks:
                h = block(h, embedding)
        for level in reversed(range(len(kept))):
            h = kept[level] + _channels_to_cells(self.grow[level](h), rank)
            for block in self.up[level]:
                h = block(h, embedding)
        return self.last(nnx.silu(h))

    def _embedding(self, t: jax.Array | None, vector: jax.Array | None) -> jax.Array | None:
        parts = []
        if self.from_time is not None:
            assert t is not None
            parts.append(self.from_time(time_features(t)))
        if self.from_vector is not None:
            assert vector is not None
            parts.append(self.from_vector(vector))
        return nnx.silu(sum(parts[1:], parts[0])) if parts else None


class FieldNet(nnx.Module):
    """A U-Net with the flat interface of the other networks: `(*batch, dim), (*batch, features)[, (*batch,)] → (*batch, outputs · dim)`.

    The state is a field `(*grid, state channels)`, flat. Of the context, as many numbers as make whole fields are a field
    `(*grid, channels)`, flat, and the rest is a vector. Several outputs follow each other, each of the state's shape.

    Args:
        config: of the U-Net.
        dim: size of the state.
        context_features: size of the context.
        outputs: numbers returned for each number of the state.
        timed: a network of state and time; else of the context alone.

    Raises:
        ConfigError: a state that is no field on the grid.
    """

    def __init__(
        self, config: UNetConfig, dim: int, context_features: int, *, outputs: int = 1, timed: bool = False, rngs: nnx.Rngs
    ) -> None:
        cells = math.prod(config.grid)
        require(dim % cells == 0, f"a state on a grid of {config.grid}", f"one of {dim} numbers", "set the network's grid to the state's")
        self.grid, self.outputs, self.timed = config.grid, outputs, timed
        self.state_channels = dim // cells
        self.context_channels, vector = divmod(context_features, cells)
        self.net = UNet(
            config, in_features=self.state_channels if timed else 0, out_features=outputs * self.state_channels,
            context_channels=self.context_channels, vector_features=vector, timed=timed, rngs=rngs,
        )  # fmt: skip

    def __call__(self, x: jax.Array, context: jax.Array, t: jax.Array | None = None) -> jax.Array:
        cut = math.prod(self.grid) * self.context_channels
        field = context[..., :cut].reshape(*context.shape[:-1], *self.grid, self.context_channels)
        state = x.reshape(*x.shape[:-1], *self.grid, self.state_channels) if self.timed else None
        out = self.net(state, t, field, context[..., cut:])
        split = out.reshape(*out.shape[:-1], self.outputs, self.state_channels)
        ordered = jnp.moveaxis(split, -2, -len(self.grid) - 2)
        return ordered.reshape(*ordered.shape[: ordered.ndim - len(self.grid) - 2], -1)


def _cells_to_channels(h: jax.Array, rank: int) -> jax.Array:
    """`(*batch, *grid, c) → (*batch, *grid / 2, 2^rank c)`: neighbours become channels."""
    lead, grid = h.shape[: -rank - 1], h.shape[-rank - 1 : -1]
    split = h.reshape(*lead, *(n for size in grid for n in (size // 2, 2)), h.shape[-1])
    first = len(lead)
    order = [*range(first), *(first + 2 * i for i in range(rank)), *(first + 2 * i + 1 for i in range(rank)), first + 2 * rank]
    return split.transpose(order).reshape(*lead, *(size // 2 for size in grid), -1)


def _channels_to_cells(h: jax.Array, rank: int) -> jax.Array:
    """The inverse of `_cells_to_channels`."""
    lead, grid = h.shape[: -rank - 1], h.shape[-rank - 1 : -1]
    split = h.reshape(*lead, *grid, *(2,) * rank, -1)
    first = len(lead)
    order = [*range(first), *(axis for i in range(rank) for axis in (first + i, first + rank + i)), first + 2 * rank]
    return split.transpose(order).reshape(*lead, *(2 * size for size in grid), -1)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A U-Net for fields on a grid.

    Args:
        grid: sizes of one or two axes, each divisible by 2 to the power of the number of resolutions less one.
        channels: of each resolution, from the finest to the coarsest.
        depth: residual blocks of each resolution, on the way down and again on the way up; 0 at the finest is cheap and often enough.
        kernel_size: of the convolutions, odd.
        periodic: a periodic domain, or zeros outside.

    Raises:
        ConfigError: a grid that cannot be halved so often, sizes that are not positive.
    """

    kind: ClassVar[str] = "unet"
    grid: tuple[int, ...] = (64, 64)
    channels: tuple[int, ...] = (16, 32, 64, 64)
    depth: tuple[int, ...] = (0, 1, 1, 1)
    kernel_size: int = 3
    periodic: bool = True

    def __post_init__(self) -> None:
        require(len(self.grid) in (1, 2), "a grid of one or two axes", self.grid, "pass the shape of one field")
        require(bool(self.channels) and min(self.channels) > 0, "positive channels", self.channels, "pass one number for each resolution")
        require(
            len(self.depth) == len(self.channels) and min(self.depth) >= 0,
            f"a depth >= 0 for each of {len(self.channels)} resolutions", self.depth, "pass as many",
        )  # fmt: skip
        require(self.kernel_size > 0 and self.kernel_size % 2 == 1, "an odd kernel_size > 0", self.kernel_size, "pass an odd number")
        factor = 2 ** (len(self.channels) - 1)
        require(
            min(self.grid) > 0 and all(size % factor == 0 for size in self.grid),
            f"a grid divisible by {factor} for {len(self.channels)} resolutions", self.grid, "pass fewer channels, or pad the field",
        )  # fmt: skip
