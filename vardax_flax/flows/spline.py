"""Rational-quadratic spline coupling (Durkan et al. 2019), conditional on a context."""

from __future__ import annotations

import distrax
import jax
from flax import nnx

from vardax_flax.nn import Conditioner


class SplineCoupling(nnx.Module):
    """z₁ = x₁, z₂ = RQS(x₂; θ(x₁, c)): a monotone rational-quadratic spline on [−bound, bound], the identity outside.

    Reference: Durkan et al. 2019, *Neural spline flows*. In one dimension there is nothing to condition on but the context, so the
    spline transforms the whole vector given c. Starts as the identity.

    Args:
        dim: size of x; the first dim // 2 components pass unchanged.
        context_features: size of the context c.
        bins: of the spline.
        bound: half-width of its domain.
        width, depth: hidden layers of the conditioner.

    Example:
        >>> layer = SplineCoupling(4, 16, bins=8, bound=5.0, width=64, depth=2, rngs=nnx.Rngs(0))
        >>> z, log_det = layer.forward(x, context)          # (*batch, 4), (*batch,)
    """

    def __init__(
        self, dim: int, context_features: int, *, bins: int, bound: float, width: int, depth: int, rngs: nnx.Rngs
    ) -> None:
        self.split = dim // 2
        self.moved = dim - self.split
        self.n_parameters = 3 * bins + 1
        self.bound = bound
        self.net = Conditioner(self.split, context_features, self.moved * self.n_parameters, width=width, depth=depth, rngs=rngs)

    def bijector(self, context: jax.Array) -> distrax.Bijector:
        """The transformation for one context, as a distrax bijector on vectors."""

        def conditioner(x: jax.Array) -> jax.Array:
            raw = self.net(x, context)
            return raw.reshape(*raw.shape[:-1], self.moved, self.n_parameters)

        def spline(parameters: jax.Array) -> distrax.Bijector:
            # bins no narrower than 1e-3 of the domain: float32 rounding divided by the width of a bin stays below 1e-3
            return distrax.RationalQuadraticSpline(
                parameters, -self.bound, self.bound, boundary_slopes="identity", min_bin_size=2e-3 * self.bound, min_knot_slope=1e-3
            )

        return distrax.SplitCoupling(self.split, event_ndims=1, conditioner=conditioner, bijector=spline)

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z and log |dz/dx|."""
        return self.bijector(context).forward_and_log_det(x)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x and log |dx/dz|."""
        return self.bijector(context).inverse_and_log_det(z)
