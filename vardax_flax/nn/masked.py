"""A masked network: what it returns for a component depends on the components before it only (MADE)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.nn.mlp import Dense, contract, weights

OneByOne = Callable[[list[jax.Array], jax.Array, jax.Array], tuple[list[jax.Array], jax.Array]]


class GivenMasked(NamedTuple):
    """A masked network for one context, its weights already masked; `last` has the shape `(width, out, dim)`."""

    start: jax.Array
    from_x: jax.Array
    hidden: list[Dense]
    last: Dense


class MaskedConditioner(nnx.Module):
    """Parameters of component i from x₍<ᵢ₎ and a context, axes of features first: `(dim, *batch), (features, *batch) → (out, dim, *batch)`.

    Hidden units have degrees 0 … dim − 1 and see units and components up to their degree; component i sees degrees below i, and all see
    the whole context (Germain et al. 2015, *MADE*, with a degree 0 for what the context alone says; residual connections keep the
    degree). As in `Conditioner`, a context serves many x, and the last layer starts at zero.

    Args:
        dim: components of x.
        context_features: size of the context.
        out_features: parameters of a component.
        width, depth: hidden layers; every degree needs a unit, so they are at least `dim` wide.
    """

    def __init__(self, dim: int, context_features: int, out_features: int, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        width = max(width, dim)
        self.dim, self.out_features, self.width = dim, out_features, width
        self.from_x = nnx.Linear(dim, width, use_bias=False, rngs=rngs)
        self.from_context = nnx.Linear(context_features, width, rngs=rngs)
        self.hidden = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth - 1)])
        self.last = nnx.Linear(width, dim * out_features, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def given(self, context: jax.Array) -> GivenMasked:
        """What does not depend on x."""
        components, units = np.arange(self.dim), self._degrees()
        kernel, bias = (part.reshape(*part.shape[:-1], self.out_features, self.dim) for part in weights(self.last))
        hidden = [weights(layer) for layer in self.hidden]
        return GivenMasked(
            weights(self.from_context).apply(self.from_context, context),
            _masked(self.from_x.kernel[...], components[:, None] < units),
            [Dense(_masked(dense.kernel, units[:, None] <= units), dense.bias) for dense in hidden],
            Dense(_masked(kernel, units[:, None, None] <= components), bias),
        )

    def __call__(self, given: GivenMasked, x: jax.Array) -> jax.Array:
        h = given.start + contract(self.from_x, given.from_x, x)
        for layer, dense in zip(self.hidden, given.hidden, strict=True):
            h = h + dense.apply(layer, nnx.silu(h))
        return given.last.apply(self.last, nnx.silu(h))

    def one_by_one(self, given: GivenMasked, lead: tuple[int, ...]) -> tuple[list[jax.Array], OneByOne]:
        """The network for components that become known in turn: its units before the first, and `(units, x, i) → units, parameters`.

        The units of degree i are all that component i adds, so dim components together cost what one call of the network does.
        """
        starts = jnp.asarray(-(-np.arange(self.dim) * self.width // self.dim), jnp.int32)
        block = -(-self.width // self.dim)  # of some degrees one too many: those are computed again when their turn comes

        def step(units: list[jax.Array], x: jax.Array, i: jax.Array) -> tuple[list[jax.Array], jax.Array]:
            at = starts[i]

            def cut(array: jax.Array, axis: int) -> jax.Array:
                return jax.lax.dynamic_slice_in_dim(array, at, block, axis)

            h, done = cut(given.start, 0) + contract(self.from_x, cut(given.from_x, 1), x), []
            for layer, dense, known in zip(self.hidden, given.hidden, units[:-1], strict=True):
                done.append(jax.lax.dynamic_update_slice_in_dim(known, nnx.silu(h), at, 0))
                h = h + Dense(cut(dense.kernel, 1), cut(dense.bias, 0)).apply(layer, done[-1])
            done.append(jax.lax.dynamic_update_slice_in_dim(units[-1], nnx.silu(h), at, 0))
            last = (jax.lax.dynamic_index_in_dim(part, i, -1, keepdims=False) for part in given.last)
            return done, Dense(*last).apply(self.last, done[-1])

        zeros = jnp.zeros((self.width, *lead), given.start.dtype)
        return [zeros] * (len(given.hidden) + 1), step

    def _degrees(self) -> np.ndarray:
        return np.arange(self.width) * self.dim // self.width


def _masked(weight: jax.Array, mask: np.ndarray) -> jax.Array:
    return weight * jnp.asarray(mask, weight.dtype)
