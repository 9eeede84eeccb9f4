"""Encoder for observations at places of their own: a set of points, in any order and any number of them missing."""

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
from vardax_flax.encoders.inputs import point_inputs, points_of
from vardax_flax.nn import AttentionPool, MeanPool, ResidualMLP, Standardizer


class SetEncoder(Encoder):
    """context = ρ(pool{point_i}, x_b), where a point is its standardised (input, mask[, noise_scale][, coords]) next to the background.

    The answer does not depend on the order of the points, nor on points that are not observed: the same statistics and the same network
    serve every point, so padding a set changes nothing. Without `coords` the points are exchangeable. Reference: Zaheer et al. 2017,
    *Deep sets*; Lee et al. 2019, *Set transformer*.

    Args:
        spec: of one element, `input` `(n,)` or `(n, channels)`; a point is present where one of its channels is observed.
        config: pooling and sizes.

    Raises:
        ConfigError: an observation of another number of axes.

    Example:
        >>> encoder = SetEncoderConfig(pooling="attention").build(simulator.spec, nnx.Rngs(0))
        >>> encoder(batch).shape
        (256, 64)
    """

    def __init__(self, spec: Batch, config: SetEncoderConfig, *, rngs: nnx.Rngs) -> None:
        background = None if spec.background is None else tuple(spec.background.shape)
        self.inputs = point_inputs(spec)
        self.background = None if background is None else Standardizer(background)
        self.features = config.features
        width = config.width
        self.from_point = nnx.Linear(self.inputs.features, width, rngs=rngs)
        self.from_background = None if background is None else nnx.Linear(math.prod(background), width, rngs=rngs)
        self.pool: AttentionPool | MeanPool
        if config.pooling == "attention":
            self.pool = AttentionPool(width, depth=config.depth, heads=config.heads, queries=config.queries, rngs=rngs)
        else:
            self.pool = MeanPool(width, depth=config.depth, rngs=rngs)
        pooled = self.pool.features + (0 if background is None else width)
        self.last = ResidualMLP(pooled, config.features, width=width, depth=1, rngs=rngs)

    def calibrate(self, batch: Batch) -> None:
        self.inputs.calibrate(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), points_of(batch)))
        if self.background is not None:
            self.background.calibrate(batch.background)

    def __call__(self, batch: Batch) -> jax.Array:
        h = self.from_point(self.inputs.flat(points_of(batch)))
        origin = []
        if self.background is not None and self.from_background is not None:
            lead = batch.background.ndim - len(self.background.mean[...].shape)
            x = self.background(batch.background).reshape(*batch.background.shape[:lead], -1)
            origin.append(self.from_background(x))
            h = h + origin[0][..., None, :]
        present = (batch.mask != 0).any(axis=-1) if self.inputs.obs_shape else batch.mask != 0
        return self.last(jnp.concatenate([self.pool(h, present), *origin], axis=-1))


@dataclasses.dataclass(frozen=True)
class SetEncoderConfig:
    """Points at their `coords` to a context of size `features`, by means ("deepset") or by attention.

    Args:
        pooling: "deepset" costs as much as there are points, and suits sites that inform the state one by one; "attention" costs the square
            of their number, and lets them see each other first.
        width: of a point in the network.
        depth: residual blocks for each point, or blocks of self-attention.
        heads, queries: of the attention.
    """

    kind: ClassVar[str] = "set"
    pooling: Literal["deepset", "attention"] = "attention"
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

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> SetEncoder:
        """The encoder for elements of these shapes."""
        return SetEncoder(spec, self, rngs=rngs)
