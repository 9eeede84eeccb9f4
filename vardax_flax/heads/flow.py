"""Normalising-flow head: a conditional Gaussian refined by a stack of flow layers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.config import require
from vardax_flax.core.interfaces import DensityHead
from vardax_flax.flows import FAMILIES, ConditionalGaussian, FlowStack
from vardax_flax.heads.regression import LOG_2PI
from vardax_flax.heads.sampling import ascend, element_noise

MODE_STARTS = 64
MAX_BINS = 100  # each bin keeps at least 1e-3 of the domain, and the rest must be free to move


class ConditionalFlowHead(DensityHead):
    """log q(x | c) = log N(z; 0, I) + log |dz/dx|, z = flow(W(c) (x − μ(c)) | c).

    The Gaussian next to the data whitens the posterior, so that the spline layers only model its departure from normality
    (Papamakarios et al. 2021, *Normalizing flows for probabilistic modeling and inference*).

    Args:
        dim: size of x.
        context_features: size of the context c.
        config: family, layers, network, and whether the Gaussian is there.

    Example:
        >>> head = FlowHeadConfig(layers=6).build(dim=2, context_features=64, rngs=nnx.Rngs(0))
        >>> head.sample(context, jax.random.key(0), 1000).shape
        (256, 1000, 2)
    """

    kind = "flow"

    def __init__(self, dim: int, context_features: int, config: FlowHeadConfig, *, rngs: nnx.Rngs) -> None:
        self.dim = dim
        family = FAMILIES[config.family]
        sizes = {"width": config.width, "depth": config.depth}
        self.affine = ConditionalGaussian(dim, context_features, full=True, **sizes, rngs=rngs) if config.affine else None
        self.stack = FlowStack(
            dim, config.layers, lambda r: family(dim, context_features, bins=config.bins, bound=config.bound, **sizes, rngs=r), rngs=rngs
        )

    def log_prob(self, x: jax.Array, context: jax.Array) -> jax.Array:
        log_det = jnp.zeros((), x.dtype)
        if self.affine is not None:
            x, log_det = self.affine.forward(x, context)
        z, change = self.stack.forward(x, context)
        return log_det + change - 0.5 * (jnp.square(z) + LOG_2PI).sum(axis=-1)

    def loss(self, x: jax.Array, context: jax.Array, key: jax.Array) -> jax.Array:
        return -self.log_prob(x, context)

    def sample(self, context: jax.Array, key: jax.Array, n: int) -> jax.Array:
        context_n = context[..., None, :]
        x, _ = self.stack.inverse(element_noise(context, key, n, self.dim), context_n)
        return x if self.affine is None else self.affine.inverse(x, context_n)[0]

    def mode(self, context: jax.Array, key: jax.Array) -> jax.Array:
        """Gradient ascent on log q from the best of 64 draws."""
        return ascend(lambda x: self.log_prob(x, context), self.sample(context, key, MODE_STARTS))


@dataclasses.dataclass(frozen=True)
class FlowHeadConfig:
    """Flow head: `layers` of one `family`, splines with `bins` on ± `bound`, conditioners of `depth` hidden layers of `width`."""

    kind: ClassVar[str] = "flow"
    family: Literal["spline"] = "spline"
    layers: int = 6
    bins: int = 8
    bound: float = 6.0
    width: int = 64
    depth: int = 2
    affine: bool = True

    def __post_init__(self) -> None:
        require(min(self.layers, self.width, self.depth) > 0, "positive sizes", self, "pass positive sizes")
        require(1 < self.bins <= MAX_BINS, f"2 to {MAX_BINS} bins", self.bins, "pass such a number")
        require(self.bound > 0, "bound > 0", self.bound, "pass a positive bound")

    def build(self, dim: int, context_features: int, rngs: nnx.Rngs) -> ConditionalFlowHead:
        """The head for states of size `dim`."""
        return ConditionalFlowHead(dim, context_features, self, rngs=rngs)
