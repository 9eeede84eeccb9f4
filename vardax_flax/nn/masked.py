"""A masked network: what it returns for a component depends on the components before it only (MADE)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class MaskedConditioner(nnx.Module):
    """Parameters of component i from x₍<ᵢ₎ and a context: `(*batch, dim), (*batch, features) → (*batch, dim, out)`.

    Hidden units have degrees 0 … dim − 1 in turn and see units and components up to their degree; component i sees degrees below i, and
    all see the whole context (Germain et al. 2015, *MADE*, with a degree 0 for what the context alone says; residual connections keep
    the degree). As in `Conditioner`, a context of shape `(*batch, 1, features)` serves n draws, and the last layer starts at zero.

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

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        inputs, units = np.arange(1, self.dim + 1), np.arange(self.width) % self.dim
        outputs = np.repeat(inputs, self.out_features)
        h = self.from_context(context) + _masked(self.from_x, x, inputs[:, None] <= units)
        for layer in self.hidden:
            h = h + _masked(layer, nnx.silu(h), units[:, None] <= units)
        raw = _masked(self.last, nnx.silu(h), units[:, None] < outputs)
        return raw.reshape(*raw.shape[:-1], self.dim, self.out_features)


def _masked(layer: nnx.Linear, x: jax.Array, mask: np.ndarray) -> jax.Array:
    kernel = layer.kernel[...] * jnp.asarray(mask, x.dtype)
    y = layer.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))  # the layer's own, which may be of another precision
    return y if layer.bias is None else y + layer.bias[...]
