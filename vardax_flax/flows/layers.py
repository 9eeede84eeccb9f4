"""How an elementwise map becomes a layer: coupling, autoregressive, or by the context alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn import Conditioner, MaskedConditioner


class Transform(NamedTuple):
    """An elementwise map with parameters.

    Args:
        n_parameters: real numbers for each component.
        bijector: `(*batch, dim, n_parameters) →` the bijector of `(*batch, dim)`, elementwise.
    """

    n_parameters: int
    bijector: Callable[[jax.Array], distrax.Bijector]


class Coupling(nnx.Module):
    """z₁ = x₁, z₂ = f(x₂; θ(x₁, c)): both directions in one pass (Dinh et al. 2017, *Density estimation using Real NVP*).

    In one dimension there is nothing to condition on but the context, so f transforms the whole vector given c.

    Args:
        dim: size of x; the first dim // 2 components pass unchanged.
        context_features: size of the context c.
        transform: f.
        width, depth: hidden layers of the network θ.

    Example:
        >>> layer = Coupling(4, 16, spline(bins=8, bound=5.0), width=64, depth=2, rngs=nnx.Rngs(0))
        >>> z, log_det = layer.forward(x, context)          # (*batch, 4), (*batch,)
    """

    def __init__(self, dim: int, context_features: int, transform: Transform, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.split = dim // 2
        self.moved = dim - self.split
        self.transform = transform
        self.net = Conditioner(self.split, context_features, self.moved * transform.n_parameters, width=width, depth=depth, rngs=rngs)

    def bijector(self, context: jax.Array) -> distrax.Bijector:
        """The layer for one context, as a distrax bijector on vectors."""

        def conditioner(x: jax.Array) -> jax.Array:
            raw = self.net(x, context)
            return raw.reshape(*raw.shape[:-1], self.moved, self.transform.n_parameters)

        return distrax.SplitCoupling(self.split, event_ndims=1, conditioner=conditioner, bijector=self.transform.bijector)

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z and log |dz/dx|."""
        return self.bijector(context).forward_and_log_det(x)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x and log |dx/dz|."""
        return self.bijector(context).inverse_and_log_det(z)


class Autoregressive(nnx.Module):
    """zᵢ = f(xᵢ; θᵢ(x₍<ᵢ₎, c)): the density in one pass, a draw in dim passes, as one scan.

    Reference: Papamakarios et al. 2017, *Masked autoregressive flow for density estimation*.

    Args: as for `Coupling`.

    Example:
        >>> layer = Autoregressive(4, 16, affine(), width=64, depth=2, rngs=nnx.Rngs(0))
        >>> x, log_det = layer.inverse(z, context)
    """

    def __init__(self, dim: int, context_features: int, transform: Transform, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.dim = dim
        self.transform = transform
        self.net = MaskedConditioner(dim, context_features, transform.n_parameters, width=width, depth=depth, rngs=rngs)

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z and log |dz/dx|."""
        z, log_slope = self.transform.bijector(self.net(x, context)).forward_and_log_det(x)
        return z, log_slope.sum(axis=-1)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x and log |dx/dz|."""
        lead = jnp.broadcast_shapes(z.shape[:-1], context.shape[:-1])
        z = jnp.broadcast_to(z, (*lead, self.dim))

        def component(carry: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            x, log_det = carry
            raw = jax.lax.dynamic_index_in_dim(self.net(x, context), i, axis=-2, keepdims=True)
            given = jax.lax.dynamic_index_in_dim(z, i, axis=-1, keepdims=True)
            found, log_slope = self.transform.bijector(raw).inverse_and_log_det(given)
            return (jax.lax.dynamic_update_index_in_dim(x, found, i, axis=-1), log_det + log_slope[..., 0]), None

        (x, log_det), _ = jax.lax.scan(component, (jnp.zeros_like(z), jnp.zeros(lead, z.dtype)), jnp.arange(self.dim))
        return x, log_det


class Elementwise(nnx.Module):
    """zᵢ = f(xᵢ; θᵢ(c)): components meet only where something mixes them between layers.

    Args: as for `Coupling`.

    Example:
        >>> layer = Elementwise(4, 16, mixture(bins=8, bound=5.0), width=64, depth=2, rngs=nnx.Rngs(0))
        >>> z, log_det = layer.forward(x, context)
    """

    def __init__(self, dim: int, context_features: int, transform: Transform, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.dim = dim
        self.transform = transform
        self.net = Conditioner(0, context_features, dim * transform.n_parameters, width=width, depth=depth, rngs=rngs)

    def _bijector(self, context: jax.Array) -> distrax.Bijector:
        raw = self.net(jnp.zeros((0,), context.dtype), context)
        return self.transform.bijector(raw.reshape(*raw.shape[:-1], self.dim, self.transform.n_parameters))

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z and log |dz/dx|."""
        z, log_slope = self._bijector(context).forward_and_log_det(x)
        return z, log_slope.sum(axis=-1)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x and log |dx/dz|."""
        x, log_slope = self._bijector(context).inverse_and_log_det(z)
        return x, log_slope.sum(axis=-1)
