"""A deep conditional flow: layers of one family with permutations between them, scanned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn import Statistic, make_stack, soft_clip
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
        x = jnp.moveaxis(jnp.broadcast_to(x, (*lead, x.shape[-1])), -1, 0)
        context = jnp.moveaxis(context.reshape(*(1,) * (len(lead) + 1 - context.ndim), *context.shape), -1, 0)
        graphdef, state = nnx.split(self.layers)
        # of all layers at once, so that one layer of the scan has little left to do
        given = jax.vmap(lambda layer: nnx.merge(graphdef, layer).given(context, direction))(state)

        # only what matrix products return is kept for the gradient: the rest costs less to compute again than to store for each layer
        @functools.partial(jax.checkpoint, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable)
        def apply(carry: tuple[jax.Array, jax.Array], layer: tuple[Any, Any]) -> tuple[tuple[jax.Array, jax.Array], None]:
            x, log_det = carry
            x, change = getattr(nnx.merge(graphdef, layer[0]), direction)(x, layer[1])
            return (x, log_det + change), None

        (x, log_det), _ = jax.lax.scan(apply, (x, jnp.zeros(lead, x.dtype)), (state, given), reverse=direction == "inverse")
        return jnp.moveaxis(x, 0, -1), log_det


class _Given(NamedTuple):
    """A layer for one context: its matrix, in the direction asked for, and what its map needs."""

    matrix: jax.Array
    log_det: jax.Array
    layer: Any


class _Mixed(nnx.Module):
    """One layer behind its permutation and, if asked, its matrix L U: one matrix together."""

    def __init__(self, dim: int, make: Callable[[nnx.Rngs], nnx.Module], lu: bool, *, rngs: nnx.Rngs) -> None:
        self.order = Statistic(jnp.arange(dim, dtype=jnp.int32))
        self.matrix = LU(dim) if lu else None
        self.layer: Any = make(rngs)

    def given(self, context: jax.Array, direction: str) -> _Given:
        order = self.order[...]
        # a product, exact with ones and zeros: the gradient of indexing would be a loop
        matrix, log_det = jax.nn.one_hot(order, len(order), dtype=context.dtype), jnp.zeros((), context.dtype)
        if self.matrix is not None:
            mixing, log_det = self.matrix.product(direction)
            matrix = matrix.T @ mixing if direction == "inverse" else mixing @ matrix
        elif direction == "inverse":
            matrix = matrix.T
        return _Given(matrix, log_det, self.layer.given(context))

    def forward(self, x: jax.Array, given: _Given) -> tuple[jax.Array, jax.Array]:
        z, log_det = self.layer.forward(_mix(given.matrix, x), given.layer)
        return z, log_det + given.log_det

    def inverse(self, z: jax.Array, given: _Given) -> tuple[jax.Array, jax.Array]:
        x, log_det = self.layer.inverse(z, given.layer)
        return _mix(given.matrix, x), log_det + given.log_det


@full_precision
def _mix(matrix: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tensordot(matrix, x, 1)


class LU(nnx.Module):
    """y = L U x, L unit lower triangular, U upper triangular with diagonal e^s, |s| ≤ 4; starts as the identity.

    Args:
        dim: size of x.

    Example:
        >>> matrix, log_det = LU(3).product("forward")
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.factors = nnx.Param(jnp.zeros((dim, dim)))  # both in one: s on the diagonal

    @full_precision
    def product(self, direction: str) -> tuple[jax.Array, jax.Array]:
        """L U and log |det|, or its inverse and the log |det| of that."""
        factors = self.factors[...]
        log_scale = soft_clip(jnp.diagonal(factors), 4.0)
        eye = jnp.eye(self.dim, dtype=factors.dtype)
        lower = jnp.tril(factors, -1) + eye
        upper = jnp.triu(factors, 1) + jnp.diag(jnp.exp(log_scale))
        if direction == "forward":
            return lower @ upper, log_scale.sum()
        back = solve_upper(lower[::-1, ::-1], eye)[::-1, ::-1]  # of a lower triangle, turned upside down
        return solve_upper(upper, eye) @ back, -log_scale.sum()
