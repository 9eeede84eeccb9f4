"""Conditional Gaussian as a bijection to the standard normal: z = W(c) (x − μ(c))."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn import Conditioner, soft_clip
from vardax_flax.ops.small import matvec, solve_upper, unit_lower

MAX_LOG_SCALE = 8.0  # of standardised targets: between 3e-4 and 3e3 of their prior standard deviation


class ConditionalGaussian(nnx.Module):
    """z = W(c) (x − μ(c)), W = diag(e^{−s}) N with N unit lower triangular, so x | c ~ N(μ, (WᵀW)⁻¹) when z ~ N(0, I).

    The Cholesky factor of the *precision* is what the network returns: the density then costs a product, and only sampling a
    triangular solve (Williams 1996; Dorta et al. 2018, *Structured uncertainty prediction networks*). |s| ≤ 8, smoothly.

    Args:
        dim: size of x.
        context_features: size of the context c.
        full: False leaves N = I (independent components).
        width, depth: of the network.

    Example:
        >>> gaussian = ConditionalGaussian(3, 16, full=True, width=64, depth=1, rngs=nnx.Rngs(0))
        >>> z, log_det = gaussian.forward(x, context)       # (*batch, 3), (*batch,)
    """

    def __init__(self, dim: int, context_features: int, *, full: bool, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.dim = dim
        self.n_lower = dim * (dim - 1) // 2 if full else 0
        self.net = Conditioner(0, context_features, 2 * dim + self.n_lower, width=width, depth=depth, rngs=rngs)

    def parameters(self, context: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """μ `(*batch, dim)`, s `(*batch, dim)` and N `(*batch, dim, dim)` or None."""
        raw = self.net.of_context(context)
        mean, log_scale, lower = jnp.split(raw, [self.dim, 2 * self.dim], axis=-1)
        return mean, soft_clip(log_scale, MAX_LOG_SCALE), unit_lower(lower, self.dim) if self.n_lower else None

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z `(*batch, dim)` and log |dz/dx| `(*batch,)`."""
        mean, log_scale, unit = self.parameters(context)
        z = x - mean
        if unit is not None:
            z = matvec(unit, z)
        return z * jnp.exp(-log_scale), -log_scale.sum(axis=-1)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x `(*batch, dim)` and log |dx/dz| `(*batch,)`."""
        mean, log_scale, unit = self.parameters(context)
        x = z * jnp.exp(log_scale)
        if unit is not None:  # one inverse per context serves all its draws, and broadcasts where a solve would not
            transposed = jnp.swapaxes(unit, -1, -2).reshape(-1, self.dim, self.dim)
            eye = jnp.eye(self.dim, dtype=x.dtype)
            inverse = jax.vmap(lambda upper: solve_upper(upper, eye))(transposed).reshape(unit.shape)
            x = matvec(jnp.swapaxes(inverse, -1, -2), x)
        return mean + x, log_scale.sum(axis=-1)
