"""Point head: one state and no distribution."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.config import check_choices, require
from vardax_flax.core.interfaces import Decoder
from vardax_flax.nn import Conditioner


class PointHead(Decoder):
    """x̂(c) that is least in Σ_i (x_i − x̂_i)², the posterior mean, or in Σ_i |x_i − x̂_i|, the median of each component.

    Both scoring rules are consistent for what they name (Gneiting 2011, *Making and evaluating point forecasts*). It answers
    `model(batch)` alone: there are no draws and no density, and gates that need them are skipped.

    Args:
        dim: size of x.
        context_features: size of the context c.
        config: loss and network.

    Example:
        >>> head = PointHeadConfig(loss="absolute").build(dim=3, context_features=64, rngs=nnx.Rngs(0))
        >>> head.mode(context, jax.random.key(0)).shape
        (256, 3)
    """

    kind = "point"

    def __init__(self, dim: int, context_features: int, config: PointHeadConfig, *, rngs: nnx.Rngs) -> None:
        self.squared = config.loss == "squared"
        self.net = Conditioner(0, context_features, dim, width=config.width, depth=config.depth, rngs=rngs)

    def loss(self, x: jax.Array, context: jax.Array, key: jax.Array) -> jax.Array:
        error = x - self.mode(context, key)
        return (jnp.square(error) if self.squared else jnp.abs(error)).sum(axis=-1)

    def mode(self, context: jax.Array, key: jax.Array) -> jax.Array:
        """The point: the mean, or the median of each component."""
        return self.net.of_context(context)


@dataclasses.dataclass(frozen=True)
class PointHeadConfig:
    """One state: the posterior mean (loss "squared") or the median of each component ("absolute")."""

    kind: ClassVar[str] = "point"
    loss: Literal["squared", "absolute"] = "squared"
    width: int = 64
    depth: int = 2

    def __post_init__(self) -> None:
        check_choices(self)
        require(min(self.width, self.depth) > 0, "positive sizes", self, "pass positive sizes")

    def build(self, dim: int, context_features: int, rngs: nnx.Rngs) -> PointHead:
        """The head for states of size `dim`."""
        return PointHead(dim, context_features, self, rngs=rngs)
