"""Encoders for observations on a grid: convolutions over (input, mask[, background]) to one context vector, or to a field of them."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import check_choices, require
from vardax_flax.core.interfaces import Encoder, Simulator
from vardax_flax.encoders.inputs import Inputs
from vardax_flax.nn import ConvNet, pool_grid


class ConvEncoder(Encoder):
    """context = linear(pool(residual convolutions over the grid of the observation)), or the whole field without pooling.

    The grid is the last `grid_rank` axes of an observation; the axes before it (time, channel) become channels. In one dimension the
    observation is `(time, site)` and the grid is the axis `grid` says. A background joins as channels, aligned if its last axes are the
    grid or, in one dimension, k times the grid (every k-th site is observed); any other background is broadcast over the grid.
    With output "field" the context is `config.channels` numbers for each point, flattened in the order `(*grid, channels)`.

    Args:
        inputs: the standardised views of a batch.
        config: sizes and padding.
        grid_rank: 1 or 2.

    Example:
        >>> encoder = Conv2DEncoderConfig(features=64).build(simulator.spec, nnx.Rngs(0))
        >>> encoder(batch).shape
        (256, 64)
    """

    def __init__(self, inputs: Inputs, config: Conv1DEncoderConfig | Conv2DEncoderConfig, grid_rank: int, *, rngs: nnx.Rngs) -> None:
        obs_shape = inputs.obs_shape
        require(len(obs_shape) >= grid_rank, f"an observation with at least {grid_rank} axes", obs_shape, "pick another encoder")
        self.inputs = inputs
        self.grid_rank = grid_rank
        self.time_grid = isinstance(config, Conv1DEncoderConfig) and config.grid == "time" and len(obs_shape) > 1
        self.cells = config.pool_cells
        self.grid = obs_shape[-2:-1] if self.time_grid else obs_shape[len(obs_shape) - grid_rank :]
        per_channel = math.prod(obs_shape) // math.prod(self.grid)
        channels = inputs.n_channels * per_channel + self._background_channels()
        padding = "CIRCULAR" if config.periodic else "SAME"
        self.net = ConvNet(
            grid_rank, in_features=channels, channels=config.channels, depth=config.depth, kernel_size=config.kernel_size, padding=padding,
            rngs=rngs,
        )  # fmt: skip
        self.field = config.output == "field"
        self.features = config.channels * math.prod(self.grid) if self.field else config.features
        pooled = config.channels * math.prod(min(config.pool_cells, size) for size in self.grid)
        sizes = (config.channels, config.channels) if self.field else (pooled, config.features)
        self.last = nnx.Linear(*sizes, rngs=rngs)

    def _background_channels(self) -> int:
        shape = self.inputs.background_shape
        if shape is None:
            return 0
        return math.prod(shape) // (math.prod(self.grid) if self._on_grid(shape) else 1)

    def _on_grid(self, shape: tuple[int, ...]) -> bool:
        if self.time_grid:
            return False
        if self.grid_rank == 1:
            return shape[-1] % self.grid[0] == 0
        return shape[len(shape) - self.grid_rank :] == self.grid

    def _to_channels(self, field: jax.Array, lead: int) -> jax.Array:
        """`(*batch, *channels, *grid)`, or `(*batch, *channels, time, site)` with time as the grid → `(*batch, *grid, channels)`."""
        batch = field.shape[:lead]
        if self.time_grid:
            field = field.reshape(*batch, -1, *field.shape[-2:])
            return jnp.moveaxis(field, lead, -1).reshape(*batch, *self.grid, -1)
        if self.grid_rank == 1:  # every k-th site: k neighbouring sites are the channels of one cell
            field = field.reshape(*batch, -1, *self.grid, field.shape[-1] // self.grid[0])
            return jnp.moveaxis(field, lead, -1).reshape(*batch, *self.grid, -1)
        return jnp.moveaxis(field.reshape(*batch, -1, *self.grid), lead, -1)

    def calibrate(self, batch: Batch) -> None:
        self.inputs.calibrate(batch)

    def __call__(self, batch: Batch) -> jax.Array:
        lead = batch.input.ndim - len(self.inputs.obs_shape)
        channels = [self._to_channels(field, lead) for field in self.inputs.observed(batch)]
        if self.inputs.background is not None:
            background = self.inputs.background(batch.background)
            if self._on_grid(self.inputs.background_shape or ()):
                channels.append(self._to_channels(background, lead))
            else:
                flat = background.reshape(*background.shape[:lead], *(1,) * self.grid_rank, -1)
                channels.append(jnp.broadcast_to(flat, (*background.shape[:lead], *self.grid, flat.shape[-1])))
        h = nnx.silu(self.net(jnp.concatenate(channels, axis=-1)))
        if self.field:
            return self.last(h).reshape(*h.shape[:lead], -1)
        return self.last(pool_grid(h, self.grid_rank, self.cells))


@dataclasses.dataclass(frozen=True)
class Conv1DEncoderConfig:
    """Residual 1-D convolutions along `grid` ("site" or "time") of a `(time, site)` observation.

    Args:
        features: size of a "global" context.
        channels: of the network, and of a "field" context at each point.
        periodic: the domain closes on itself; otherwise zeros lie outside.
        output: "global" pools the field over `pool_cells` cells and mixes them to one vector; "field" gives the field itself, flattened.
    """

    kind: ClassVar[str] = "conv1d"
    features: int = 64
    channels: int = 32
    depth: int = 3
    kernel_size: int = 5
    periodic: bool = True
    grid: Literal["site", "time"] = "site"
    pool_cells: int = 8
    output: Literal["global", "field"] = "global"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_sizes(self)

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> ConvEncoder:
        """The encoder for elements of these shapes."""
        return ConvEncoder(Inputs(spec), self, 1, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Conv2DEncoderConfig:
    """Residual 2-D convolutions over the last two axes of an observation.

    Args:
        features: size of a "global" context.
        channels: of the network, and of a "field" context at each point.
        periodic: the domain closes on itself; otherwise zeros lie outside.
        output: "global" pools the field over `pool_cells` cells a side and mixes them to one vector; "field" gives the field itself,
            flattened.
    """

    kind: ClassVar[str] = "conv2d"
    features: int = 64
    channels: int = 32
    depth: int = 3
    kernel_size: int = 3
    periodic: bool = False
    pool_cells: int = 4
    output: Literal["global", "field"] = "global"

    def __post_init__(self) -> None:
        _check_sizes(self)

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> ConvEncoder:
        """The encoder for elements of these shapes."""
        return ConvEncoder(Inputs(spec), self, 2, rngs=rngs)


def _check_sizes(config: Conv1DEncoderConfig | Conv2DEncoderConfig) -> None:
    check_choices(config)
    sizes = (config.features, config.channels, config.kernel_size, config.pool_cells)
    require(min(sizes) > 0 and config.depth >= 0, "positive sizes", config, "pass positive sizes")
