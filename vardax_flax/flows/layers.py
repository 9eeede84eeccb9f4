"""How an elementwise map becomes a layer: coupling, autoregressive, or by the context alone. Axes of features come first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn import Conditioner, MaskedConditioner

UNROLLED = 4  # components that are drawn one after the other without a loop


class Transform(NamedTuple):
    """An elementwise map with parameters.

    Args:
        n_parameters: real numbers for each component.
        bijector: `(n_parameters, dim, *batch) →` the bijector of `(dim, *batch)`, elementwise.
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
        >>> z, log_det = layer.forward(x, layer.given(context))          # (4, *batch), (*batch,)
    """

    def __init__(self, dim: int, context_features: int, transform: Transform, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.split = dim // 2
        self.moved = dim - self.split
        self.transform = transform
        self.net = Conditioner(self.split, context_features, self.moved * transform.n_parameters, width=width, depth=depth, rngs=rngs)

    def given(self, context: jax.Array) -> Any:
        """What does not depend on x, from a context `(features, *batch)`."""
        return self.net.given(context)

    def forward(self, x: jax.Array, given: Any) -> tuple[jax.Array, jax.Array]:
        """z and log |dz/dx|."""
        moved, log_slope = self._bijector(x, given).forward_and_log_det(x[self.split :])
        return jnp.concatenate([x[: self.split], moved]), log_slope.sum(axis=0)

    def inverse(self, z: jax.Array, given: Any) -> tuple[jax.Array, jax.Array]:
        """x and log |dx/dz|."""
        moved, log_slope = self._bijector(z, given).inverse_and_log_det(z[self.split :])
        return jnp.concatenate([z[: self.split], moved]), log_slope.sum(axis=0)

    def _bijector(self, x: jax.Array, given: Any) -> distrax.Bijector:
        return self.transform.bijector(_parameters(self.net(given, x[: self.split]), self.moved))


class Autoregressive(nnx.Module):
    """zᵢ = f(xᵢ; θᵢ(x₍<ᵢ₎, c)): the density in one pass, a draw component by component at the cost of about one.

    Reference: Papamakarios et al. 2017, *Masked autoregressive flow for density estimation*.

    Args: as for `Coupling`.

    Example:
        >>> layer = Autoregressive(4, 16, affine(), width=64, depth=2, rngs=nnx.Rngs(0))
        >>> x, log_det = layer.inverse(z, layer.given(context))
    """

    def __init__(self, dim: int, context_features: int, transform: Transform, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.dim = dim
        self.transform = transform
        self.net = MaskedConditioner(dim, context_features, transform.n_parameters, width=width, depth=depth, rngs=rngs)

    def given(self, context: jax.Array) -> Any:
        """What does not depend on x, from a context `(features, *batch)`."""
        return self.net.given(context)

    def forward(self, x: jax.Array, given: Any) -> tuple[jax.Array, jax.Array]:
        """z and log |dz/dx|."""
        z, log_slope = self.transform.bijector(self.net(given, x)).forward_and_log_det(x)
        return z, log_slope.sum(axis=0)

    def inverse(self, z: jax.Array, given: Any) -> tuple[jax.Array, jax.Array]:
        """x and log |dx/dz|."""
        units, parameters = self.net.one_by_one(given, z.shape[1:])

        def component(carry: Any, i: jax.Array) -> tuple[Any, None]:
            x, units, log_det = carry
            units, raw = parameters(units, x, i)
            given = jax.lax.dynamic_index_in_dim(z, i, keepdims=False)
            found, log_slope = self.transform.bijector(raw).inverse_and_log_det(given)
            return (jax.lax.dynamic_update_index_in_dim(x, found, i, 0), units, log_det + log_slope), None

        start = (jnp.zeros_like(z), units, jnp.zeros_like(z[0]))
        (x, _, log_det), _ = jax.lax.scan(component, start, jnp.arange(self.dim), unroll=self.dim if self.dim <= UNROLLED else 1)
        return x, log_det


class Elementwise(nnx.Module):
    """zᵢ = f(xᵢ; θᵢ(c)): components meet only where something mixes them between layers.

    Args: as for `Coupling`.

    Example:
        >>> layer = Elementwise(4, 16, mixture(bins=8, bound=5.0), width=64, depth=2, rngs=nnx.Rngs(0))
        >>> z, log_det = layer.forward(x, layer.given(context))
    """

    def __init__(self, dim: int, context_features: int, transform: Transform, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.dim = dim
        self.transform = transform
        self.net = Conditioner(0, context_features, dim * transform.n_parameters, width=width, depth=depth, rngs=rngs)

    def given(self, context: jax.Array) -> Any:
        """What does not depend on x, from a context `(features, *batch)`."""
        return _parameters(self.net(self.net.given(context)), self.dim)

    def forward(self, x: jax.Array, given: Any) -> tuple[jax.Array, jax.Array]:
        """z and log |dz/dx|."""
        z, log_slope = self.transform.bijector(given).forward_and_log_det(x)
        return z, log_slope.sum(axis=0)

    def inverse(self, z: jax.Array, given: Any) -> tuple[jax.Array, jax.Array]:
        """x and log |dx/dz|."""
        x, log_slope = self.transform.bijector(given).inverse_and_log_det(z)
        return x, log_slope.sum(axis=0)


def _parameters(raw: jax.Array, dim: int) -> jax.Array:
    """`(n_parameters · dim, *batch) → (n_parameters, dim, *batch)`."""
    return raw.reshape(-1, dim, *raw.shape[1:])
