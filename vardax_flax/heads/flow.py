"""Normalising-flow head: a conditional Gaussian refined by a stack of flow layers."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.config import check_choices, require
from vardax_flax.core.interfaces import DensityHead
from vardax_flax.flows import ConditionalGaussian, build_flow
from vardax_flax.heads.sampling import ascend, element_noise, in_blocks
from vardax_flax.ops.gaussian import standard_log_prob

MODE_STARTS = 64
MAX_DEGREE = 100  # of a polynomial: its binomial coefficients must fit single precision
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
        sizes: dict[str, Any] = {"width": config.width, "depth": config.depth}
        gaussian = config.family.startswith("gaussian")
        full = config.family != "gaussian_diag"
        self.affine = ConditionalGaussian(dim, context_features, full=full, **sizes, rngs=rngs) if config.affine or gaussian else None
        stack = {"layers": config.layers, "bins": config.bins, "bound": config.bound, "mixing": config.mixing} | sizes
        self.stack = None if gaussian else build_flow(config.family, dim, context_features, **stack, rngs=rngs)

    def log_prob(self, x: jax.Array, context: jax.Array) -> jax.Array:
        log_det = jnp.zeros((), x.dtype)
        if self.affine is not None:
            x, log_det = self.affine.forward(x, context)
        if self.stack is not None:
            x, change = self.stack.forward(x, context)
            log_det = log_det + change
        return log_det + standard_log_prob(x)

    def loss(self, x: jax.Array, context: jax.Array, key: jax.Array) -> jax.Array:
        return -self.log_prob(x, context)

    def sample(self, context: jax.Array, key: jax.Array, n: int) -> jax.Array:
        flat = context.reshape(-1, context.shape[-1])
        return in_blocks(self._draw, flat, element_noise(flat, key, n, self.dim), n, self.dim).reshape(*context.shape[:-1], n, self.dim)

    def _draw(self, context: jax.Array, z: jax.Array) -> jax.Array:
        context = context[:, None]
        x = z if self.stack is None else self.stack.inverse(z, context)[0]
        return x if self.affine is None else self.affine.inverse(x, context)[0]

    def mode(self, context: jax.Array, key: jax.Array) -> jax.Array:
        """The mean of a Gaussian, else gradient ascent on log q from the best of 64 draws."""
        if self.stack is None:
            assert self.affine is not None
            return self.affine.parameters(context)[0]
        return ascend(lambda x: self.log_prob(x, context), self.sample(context, key, MODE_STARTS))


@dataclasses.dataclass(frozen=True)
class FlowHeadConfig:
    """Flow head: `layers` of one `family`, conditioners of `depth` hidden layers of `width`.

    Args:
        family: coupling layers ("nice" shifts, "affine", "spline"), autoregressive ones ("maf" affine, "nsf" spline, "ncsf" spline on
            a circle of ± `bound` in the standardised state and the identity beyond, "naf" neural, "unaf" integrated network, "sospf"
            sums of squares, "bpf" Bernstein polynomials), elementwise mixtures with matrices between ("gf"), or no layers ("gaussian",
            "gaussian_diag"). A coupling layer evaluates and draws in one pass; an autoregressive one draws in as many passes as there
            are components.
        bins: of a spline, components of a mixture, half the degree of a polynomial.
        bound: half-width of where a layer is curved.
        affine: a conditional Gaussian next to the data.
        mixing: what stands between layers; None leaves it to the family.
    """

    kind: ClassVar[str] = "flow"
    family: Literal[
        "nice", "affine", "spline", "maf", "nsf", "ncsf", "naf", "unaf", "sospf", "bpf", "gf", "gaussian", "gaussian_diag"
    ] = "spline"  # fmt: skip
    layers: int = 6
    bins: int = 8
    bound: float = 6.0
    width: int = 64
    depth: int = 2
    affine: bool = True
    mixing: Literal["permutation", "lu"] | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.affine or not self.family.startswith("gaussian"), "affine=True for a Gaussian", self.affine, "leave it on")
        require(min(self.layers, self.width, self.depth) > 0, "positive sizes", self, "pass positive sizes")
        most = MAX_DEGREE // 2 if self.family == "bpf" else MAX_BINS
        require(1 < self.bins <= most, f"2 to {most} bins", self.bins, "pass such a number")
        require(self.bound > 0, "bound > 0", self.bound, "pass a positive bound")

    def build(self, dim: int, context_features: int, rngs: nnx.Rngs) -> ConditionalFlowHead:
        """The head for states of size `dim`."""
        return ConditionalFlowHead(dim, context_features, self, rngs=rngs)
