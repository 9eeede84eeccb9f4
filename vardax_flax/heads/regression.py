"""Gaussian heads: diagonal, low-rank plus diagonal, full covariance."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.config import check_choices, require
from vardax_flax.core.interfaces import DensityHead
from vardax_flax.flows import ConditionalGaussian, FieldGaussian
from vardax_flax.flows.field import check_long_waves
from vardax_flax.flows.gaussian import MAX_LOG_SCALE
from vardax_flax.heads.sampling import element_noise
from vardax_flax.nn import Conditioner, UNetConfig, soft_clip
from vardax_flax.ops.gaussian import LOG_2PI, standard_log_prob
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import least_squares, matvec, sum_of_squares


class RegressionHead(DensityHead):
    """q(x | c) = N(μ(c), Σ(c)), Σ diagonal, U Uᵀ + diagonal, full through the Cholesky factor of its inverse, or of fields.

    Reference: Dorta et al. 2018, *Structured uncertainty prediction networks*; fields as `FieldGaussian`. Each log-scale stays within ± 8
    of the standardised target.

    Args:
        dim: size of x.
        context_features: size of the context c.
        config: covariance, rank and network.

    Example:
        >>> head = RegressionHeadConfig(covariance="full").build(dim=3, context_features=64, rngs=nnx.Rngs(0))
        >>> head.log_prob(x, context)                       # (*batch,)
    """

    kind = "regression"

    def __init__(self, dim: int, context_features: int, config: RegressionHeadConfig, *, rngs: nnx.Rngs) -> None:
        self.dim = dim
        sizes: dict[str, Any] = {"width": config.width, "depth": config.depth, "rngs": rngs}
        self.gaussian: ConditionalGaussian | LowRankGaussian | FieldGaussian
        if config.net is not None:
            self.gaussian = FieldGaussian(config.net, dim, context_features, long_waves=config.long_waves, rngs=rngs)
        elif config.covariance == "low_rank":
            self.gaussian = LowRankGaussian(dim, context_features, min(config.rank, dim), **sizes)
        else:
            self.gaussian = ConditionalGaussian(dim, context_features, full=config.covariance == "full", **sizes)

    def log_prob(self, x: jax.Array, context: jax.Array) -> jax.Array:
        if isinstance(self.gaussian, LowRankGaussian):
            return self.gaussian.log_prob(x, context)
        z, log_det = self.gaussian.forward(x, context)
        return log_det + standard_log_prob(z)

    def loss(self, x: jax.Array, context: jax.Array, key: jax.Array) -> jax.Array:
        return -self.log_prob(x, context)

    def sample(self, context: jax.Array, key: jax.Array, n: int) -> jax.Array:
        if isinstance(self.gaussian, LowRankGaussian):
            return self.gaussian.sample(context, key, n)
        return self.gaussian.inverse(element_noise(context, key, n, self.dim), context[..., None, :])[0]

    def mode(self, context: jax.Array, key: jax.Array) -> jax.Array:
        return self.gaussian.parameters(context)[0]


class LowRankGaussian(nnx.Module):
    """N(μ(c), U(c) U(c)ᵀ + diag(e^{2 s(c)})), density by the Woodbury identity and the determinant lemma in rank × rank.

    Args:
        dim: size of x.
        context_features: size of the context c.
        rank: columns of U.
        width, depth: of the network.
    """

    def __init__(self, dim: int, context_features: int, rank: int, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.dim = dim
        self.rank = rank
        self.net = Conditioner(0, context_features, dim * (2 + rank), width=width, depth=depth, rngs=rngs)
        # U = 0 has no gradient (the likelihood is even in U): a small random bias of the last layer breaks the symmetry
        bias: Any = self.net.last.bias
        start = 0.1 * jax.random.normal(rngs.params(), (dim * rank,), bias[...].dtype)
        bias[...] = bias[...].at[2 * dim :].set(start)

    def parameters(self, context: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """μ `(*batch, dim)`, s `(*batch, dim)`, U `(*batch, dim, rank)`."""
        raw = self.net.of_context(context)
        mean, log_scale, factor = jnp.split(raw, [self.dim, 2 * self.dim], axis=-1)
        return mean, soft_clip(log_scale, MAX_LOG_SCALE), factor.reshape(*factor.shape[:-1], self.dim, self.rank)

    def log_prob(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """log N(x; μ, U Uᵀ + D), `(*batch,)`."""
        return self._density(x, *self.parameters(context))

    @full_precision
    def _density(self, x: jax.Array, mean: jax.Array, log_scale: jax.Array, factor: jax.Array) -> jax.Array:
        z = (x - mean) * jnp.exp(-log_scale)
        scaled = jnp.broadcast_to(factor * jnp.exp(-log_scale)[..., None], (*z.shape, self.rank))
        # Woodbury as ridge regression: zᵀ (I + V Vᵀ)⁻¹ z = min over a of ‖z − V a‖² + ‖a‖², without the difference of two large numbers
        ridge = jnp.broadcast_to(jnp.eye(self.rank, dtype=x.dtype), (*z.shape[:-1], self.rank, self.rank))
        a, triangle = jnp.vectorize(least_squares, signature="(m,r),(m)->(r),(r,r)")(
            jnp.concatenate([scaled, ridge], axis=-2), jnp.concatenate([z, jnp.zeros((*z.shape[:-1], self.rank), x.dtype)], axis=-1)
        )
        rest = z - matvec(scaled, a)
        quadratic = sum_of_squares(rest) + sum_of_squares(a)
        log_det = 2 * log_scale.sum(axis=-1) + 2 * jnp.log(jnp.diagonal(triangle, axis1=-2, axis2=-1)).sum(axis=-1)
        return -0.5 * (quadratic + log_det + self.dim * LOG_2PI)

    def sample(self, context: jax.Array, key: jax.Array, n: int) -> jax.Array:
        """μ + e^s ε + U η, `(*batch, n, dim)`."""
        mean, log_scale, factor = self.parameters(context[..., None, :])
        noise = element_noise(context, key, n, self.dim + self.rank)
        local, shared = jnp.split(noise, [self.dim], axis=-1)
        return mean + jnp.exp(log_scale) * local + matvec(factor, shared)


@dataclasses.dataclass(frozen=True)
class RegressionHeadConfig:
    """Gaussian head.

    Args:
        covariance: "diagonal", "low_rank" (diagonal and so many outer products) or "full".
        rank: of the low-rank covariance.
        width, depth: of the network.
        net: a U-Net for a state that is a field on its grid, in place of all that: a mean and a scale at each point, and a spectrum for
            each channel; channels, such as the days of a window, are independent of each other.
        long_waves: with `net`, how many coarser grids have a scale of their own (`FieldGaussian`), for errors that are of longer waves in
            some places than in others; None is none.
    """

    kind: ClassVar[str] = "regression"
    covariance: Literal["diagonal", "low_rank", "full"] = "full"
    rank: int = 8
    width: int = 64
    depth: int = 1
    net: UNetConfig | None = None
    long_waves: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        require(min(self.rank, self.width, self.depth) > 0, "positive sizes", self, "pass positive sizes")
        check_long_waves(self.long_waves, self.net)

    def build(self, dim: int, context_features: int, rngs: nnx.Rngs) -> RegressionHead:
        """The head for states of size `dim`."""
        return RegressionHead(dim, context_features, self, rngs=rngs)
