"""A deep conditional flow: layers of one family with permutations between them, scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn import Statistic, make_stack, scan_stack, soft_clip
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import solve_upper


class FlowStack(nnx.Module):
    """z = f_L ∘ P_L ∘ … ∘ f_1 ∘ P_1 (x | c) with permutations P and log |dz/dx| = Σ log |df_l|.

    Every second permutation is a reversal, so that two layers together transform every component; the others are random. With
    `mixing="lu"` a trained matrix L U follows each, L with ones on its diagonal (Kingma & Dhariwal 2018, *Glow*).

    Args:
        dim: size of x.
        n_layers: number of layers.
        make: builds one layer, `rngs -> module` with `forward` and `inverse`.
        mixing: "permutation" or "lu".

    Example:
        >>> flow = FlowStack(2, 6, lambda r: Coupling(2, 16, ..., rngs=r), "permutation", rngs=nnx.Rngs(0))
        >>> x, log_det = flow.inverse(z, context)
    """

    def __init__(self, dim: int, n_layers: int, make: Callable[[nnx.Rngs], nnx.Module], mixing: str, *, rngs: nnx.Rngs) -> None:
        self.layers = make_stack(lambda r: _Mixed(dim, make, mixing == "lu" and dim > 1, rngs=r), n_layers, rngs)
        reverse = jnp.arange(dim)[::-1]
        keys = jax.random.split(rngs.params(), n_layers)
        orders = [reverse if layer % 2 or dim < 3 else jax.random.permutation(keys[layer], dim) for layer in range(n_layers)]
        self.layers.order[...] = jnp.stack(orders).astype(jnp.int32)

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z `(*batch, dim)` and log |dz/dx| `(*batch,)`."""
        return self._run("forward", x, context)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x `(*batch, dim)` and log |dx/dz| `(*batch,)`."""
        return self._run("inverse", z, context)

    def _run(self, direction: str, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        lead = jnp.broadcast_shapes(x.shape[:-1], context.shape[:-1])
        x = jnp.broadcast_to(x, (*lead, x.shape[-1]))

        def apply(layer: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, log_det = carry
            x, change = getattr(layer, direction)(x, context)
            return x, log_det + change

        return scan_stack(self.layers, apply, (x, jnp.zeros(lead, x.dtype)), reverse=direction == "inverse")


class _Mixed(nnx.Module):
    """One layer behind its permutation and, if asked, its matrix."""

    def __init__(self, dim: int, make: Callable[[nnx.Rngs], nnx.Module], lu: bool, *, rngs: nnx.Rngs) -> None:
        self.order = Statistic(jnp.arange(dim, dtype=jnp.int32))
        self.matrix = LU(dim) if lu else None
        self.layer: Any = make(rngs)

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, mixed = jnp.take(x, self.order[...], axis=-1), jnp.zeros((), x.dtype)
        if self.matrix is not None:
            x, mixed = self.matrix.forward(x)
        z, log_det = self.layer.forward(x, context)
        return z, log_det + mixed

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, log_det = self.layer.inverse(z, context)
        mixed = jnp.zeros((), x.dtype)
        if self.matrix is not None:
            x, mixed = self.matrix.inverse(x)
        return jnp.take(x, jnp.argsort(self.order[...]), axis=-1), log_det + mixed


class LU(nnx.Module):
    """y = L U x, L unit lower triangular, U upper triangular with diagonal e^s, |s| ≤ 4; starts as the identity.

    Args:
        dim: size of x.

    Example:
        >>> y, log_det = LU(3).forward(jnp.ones((5, 3)))
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.factors = nnx.Param(jnp.zeros((dim, dim)))  # both in one: s on the diagonal

    def _parts(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        factors = self.factors[...]
        log_scale = soft_clip(jnp.diagonal(factors), 4.0)
        lower = jnp.tril(factors, -1) + jnp.eye(self.dim, dtype=factors.dtype)
        return lower, jnp.triu(factors, 1) + jnp.diag(jnp.exp(log_scale)), log_scale.sum()

    @full_precision
    def forward(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """y and log |dy/dx|."""
        lower, upper, log_det = self._parts()
        return x @ (lower @ upper).T, log_det

    @full_precision
    def inverse(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x and log |dx/dy|."""
        lower, upper, log_det = self._parts()
        eye = jnp.eye(self.dim, dtype=lower.dtype)
        back = solve_upper(lower[::-1, ::-1], eye)[::-1, ::-1]  # of a lower triangle, turned upside down
        return y @ (solve_upper(upper, eye) @ back).T, -log_det
