"""Encoder for series: a recurrent network, or attention that knows the time."""

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
from vardax_flax.nn import AttentionPool, BidirectionalGRU, ResidualMLP, time_features


class TimeSeriesEncoder(Encoder):
    """context = ρ(net(u_1, …, u_T), x_b), u_t the standardised (input, mask[, noise_scale][, coords]) at time t.

    Args:
        inputs: the standardised views of a batch, `input` `(time, …)`.
        config: the network and its sizes.

    Raises:
        ConfigError: an observation without axes.

    Example:
        >>> encoder = TimeSeriesEncoderConfig(cell="gru").build(simulator.spec, nnx.Rngs(0))
        >>> encoder(batch).shape
        (256, 64)
    """

    def __init__(self, inputs: Inputs, config: TimeSeriesEncoderConfig, *, rngs: nnx.Rngs) -> None:
        shape = inputs.obs_shape
        require(len(shape) >= 1 and shape[0] > 0, "an observation of shape (time, …)", shape, "pick another encoder")
        self.inputs = inputs
        self.features = config.features
        width, each = config.width, inputs.n_channels * math.prod(shape[1:])
        self.net: BidirectionalGRU | AttentionPool
        if config.cell == "gru":
            self.from_input = None
            self.net = BidirectionalGRU(each, width, rngs=rngs)
        else:
            clock = time_features(jnp.zeros(1)).shape[-1]
            self.from_input = nnx.Linear(each + clock, width, rngs=rngs)
            self.net = AttentionPool(width, depth=config.depth, heads=config.heads, queries=config.queries, rngs=rngs)
        background = 0 if inputs.background_shape is None else math.prod(inputs.background_shape)
        self.last = ResidualMLP(self.net.features + background, config.features, width=width, depth=1, rngs=rngs)

    def calibrate(self, batch: Batch) -> None:
        self.inputs.calibrate(batch)

    def __call__(self, batch: Batch) -> jax.Array:
        lead = batch.input.ndim - len(self.inputs.obs_shape)
        series = jnp.concatenate([part.reshape(*part.shape[: lead + 1], -1) for part in self.inputs.observed(batch)], axis=-1)
        pooled = [self._read(series)]
        if self.inputs.background is not None:
            x = self.inputs.background(batch.background)
            pooled.append(x.reshape(*x.shape[:lead], -1))
        return self.last(jnp.concatenate(pooled, axis=-1))

    def _read(self, series: jax.Array) -> jax.Array:
        if isinstance(self.net, BidirectionalGRU):
            return self.net(series)
        assert self.from_input is not None
        clock = time_features(jnp.linspace(0, math.pi, series.shape[-2], dtype=series.dtype))
        tokens = self.from_input(jnp.concatenate([series, jnp.broadcast_to(clock, (*series.shape[:-1], clock.shape[-1]))], axis=-1))
        return self.net(nnx.silu(tokens), jnp.ones(tokens.shape[:-1], bool))


@dataclasses.dataclass(frozen=True)
class TimeSeriesEncoderConfig:
    """A series to a context of size `features`: read by a GRU in both directions, or by attention between times.

    Args:
        cell: "gru" takes one step after another, at a cost that grows with their number; "attention" sees all times at once, at a cost that
            grows with its square.
        width: of the network.
        depth, heads, queries: of the attention.
    """

    kind: ClassVar[str] = "series"
    cell: Literal["gru", "attention"] = "gru"
    features: int = 64
    width: int = 64
    depth: int = 2
    heads: int = 4
    queries: int = 4

    def __post_init__(self) -> None:
        check_choices(self)
        sizes = (self.features, self.width, self.heads, self.queries)
        require(min(sizes) > 0 and self.depth >= 0, "positive sizes", self, "pass positive sizes")
        require(self.width % self.heads == 0, f"a width that {self.heads} heads divide", self.width, "pass a multiple")

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> TimeSeriesEncoder:
        """The encoder for elements of these shapes."""
        return TimeSeriesEncoder(Inputs(spec), self, rngs=rngs)
