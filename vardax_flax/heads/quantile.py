"""Quantile head: each component's distribution by its quantiles, learned by a proper scoring rule instead of a likelihood."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Head
from vardax_flax.heads.sampling import element_noise
from vardax_flax.nn import Conditioner

LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)
UNIT = math.log(math.e - 1)  # whose softplus is 1


class QuantileHead(Head):
    """Quantiles Q_i(τ_k | c) of each component x_i, trained by Σ_i mean_k max(τ_k e, (τ_k − 1) e), e = x_i − Q_i(τ_k).

    The pinball loss is least in expectation for the quantile (Koenker & Bassett 1978, *Regression quantiles*). Its integral over all levels
    is half the CRPS (Gneiting & Raftery 2007); its mean over these weighs the levels by how close they lie. Between them Q is linear in
    Φ⁻¹(τ), with a slope that is a softplus, so quantiles never cross; beyond them the tail is that of a normal. An untrained head is
    standard normal, at every level.

    **Only marginals are modelled.** `sample` draws every component on its own, Q_i(τ) with independent τ ~ U(0, 1): intervals of single
    components may be trusted, sums, differences and anything else that joins components may not.

    Args:
        dim: size of x.
        context_features: size of the context c.
        config: levels and network.

    Example:
        >>> head = QuantileHeadConfig().build(dim=3, context_features=64, rngs=nnx.Rngs(0))
        >>> head.quantiles(context).shape                   # (*batch, dim, levels)
        (256, 3, 13)
    """

    kind = "quantile"

    def __init__(self, dim: int, context_features: int, config: QuantileHeadConfig, *, rngs: nnx.Rngs) -> None:
        self.dim = dim
        self.levels = config.levels
        self.median = config.levels.index(0.5)
        self.net = Conditioner(0, context_features, dim * len(config.levels), width=config.width, depth=config.depth, rngs=rngs)

    def _knots(self, like: jax.Array) -> jax.Array:
        """Φ⁻¹ of the levels `(levels,)`."""
        return jnp.asarray(np.array([NormalDist().inv_cdf(level) for level in self.levels]), like.dtype)

    def _pieces(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The median `(*batch, dim)`, and the slopes of Q between levels `(*batch, dim, levels − 1)`."""
        raw = self.net.of_context(context)
        raw = raw.reshape(*raw.shape[:-1], self.dim, len(self.levels))
        return raw[..., 0], nnx.softplus(raw[..., 1:] + UNIT)

    def quantiles(self, context: jax.Array) -> jax.Array:
        """Q at the levels, increasing, `(*batch, dim, levels)`."""
        median, slope = self._pieces(context)
        rise = slope * jnp.diff(self._knots(context))
        up = jnp.cumsum(rise[..., self.median :], axis=-1)
        down = -jnp.flip(jnp.cumsum(jnp.flip(rise[..., : self.median], axis=-1), axis=-1), axis=-1)
        return median[..., None] + jnp.concatenate([down, jnp.zeros_like(median)[..., None], up], axis=-1)

    def loss(self, x: jax.Array, context: jax.Array, key: jax.Array) -> jax.Array:
        levels = jnp.asarray(self.levels, x.dtype)
        error = x[..., None] - self.quantiles(context)
        return jnp.maximum(levels * error, (levels - 1) * error).mean(axis=-1).sum(axis=-1)

    def sample(self, context: jax.Array, key: jax.Array, n: int) -> jax.Array:
        """`n` draws whose components are independent of each other: `(*batch, n, dim)`."""
        knots, (_, slope), at = self._knots(context), self._pieces(context), self.quantiles(context)
        z = element_noise(context, key, n, self.dim)  # Φ⁻¹ of the uniforms
        piece = jnp.clip(jnp.searchsorted(knots, z) - 1, 0, len(self.levels) - 2)
        start, rate = (_pick(field, piece) for field in (at[..., :-1], slope))
        return start + rate * (z - knots[piece])

    def mode(self, context: jax.Array, key: jax.Array) -> jax.Array:
        """The median of each component."""
        return self._pieces(context)[0]


def _pick(field: jax.Array, piece: jax.Array) -> jax.Array:
    """field `(*batch, dim, pieces)` at piece `(*batch, n, dim)`."""
    return jnp.take_along_axis(field[..., None, :, :], piece[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True)
class QuantileHeadConfig:
    """Marginal quantiles at `levels`, which grow within (0, 1) and hold 0.5 between others."""

    kind: ClassVar[str] = "quantile"
    levels: tuple[float, ...] = LEVELS
    width: int = 64
    depth: int = 2

    def __post_init__(self) -> None:
        require(min(self.width, self.depth) > 0, "positive sizes", self, "pass positive sizes")
        ordered = all(low < high for low, high in zip((0.0, *self.levels), (*self.levels, 1.0), strict=True))
        require(ordered and 0.5 in self.levels[1:-1], "levels that grow within (0, 1), 0.5 between others", self.levels, "repair them")

    def build(self, dim: int, context_features: int, rngs: nnx.Rngs) -> QuantileHead:
        """The head for states of size `dim`."""
        return QuantileHead(dim, context_features, self, rngs=rngs)
