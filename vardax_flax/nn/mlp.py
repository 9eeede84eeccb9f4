"""Residual multilayer perceptron with layer normalisation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn.stack import make_stack, scan_stack


class ResidualBlock(nnx.Module):
    """h ← h + W₂ silu(W₁ LayerNorm(h)); starts as the identity."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.outer = nnx.Linear(width, width, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return h + self.outer(nnx.silu(self.inner(self.norm(h))))


class ResidualMLP(nnx.Module):
    """Vector to vector through residual blocks (He et al. 2016, pre-normalised), `(*batch, in) → (*batch, out)`.

    Args:
        in_features, out_features: sizes.
        width: of the hidden layers.
        depth: number of residual blocks.

    Example:
        >>> net = ResidualMLP(10, 3, width=64, depth=2, rngs=nnx.Rngs(0))
        >>> net(jnp.zeros((8, 10))).shape
        (8, 3)
    """

    def __init__(self, in_features: int, out_features: int, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(in_features, width, rngs=rngs)
        self.blocks = make_stack(lambda r: ResidualBlock(width, rngs=r), depth, rngs) if depth else None
        self.last = nnx.Linear(width, out_features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.first(x)
        if self.blocks is not None:
            h = scan_stack(self.blocks, lambda block, h: block(h), h)
        return self.last(nnx.silu(h))


class Dense(NamedTuple):
    """W and b of h ↦ Wᵀ h + b, on the first axis of h."""

    kernel: jax.Array
    bias: jax.Array

    def apply(self, layer: Any, h: jax.Array) -> jax.Array:
        """The map, by the product of the layer that W and b are of."""
        bias = self.bias.reshape(*self.bias.shape, *(1,) * (h.ndim - 1))
        return contract(layer, self.kernel, h) + bias


def contract(layer: Any, kernel: jax.Array, h: jax.Array) -> jax.Array:
    """Σᵢ kernelᵢ… hᵢ…: the first axis of both, by the product of a layer, whose precision training may lower."""
    return layer.dot_general(kernel, h.astype(kernel.dtype), (((0,), (0,)), ((), ()))).astype(h.dtype)


def weights(layer: nnx.Linear) -> Dense:
    """Those of a layer with a bias."""
    assert layer.bias is not None
    return Dense(jnp.asarray(layer.kernel[...]), jnp.asarray(layer.bias[...]))


class Given(NamedTuple):
    """A network of (x, context) for one context."""

    start: jax.Array
    from_x: jax.Array | None
    layers: list[Dense]


class Conditioner(nnx.Module):
    """A small network of (x, context) whose context part is computed once for many x.

    Axes of features come first: `given((features, *batch))`, then `net(given, (in, *batch)) → (out, *batch)`. Networks of flows are narrow
    and batches long, so on a CPU the vector registers, on a GPU neighbouring threads run along the batch. The first layer is
    W x + V context, so a context of shape `(features, *batch, 1)` serves n draws `(dim, *batch, n)` without being repeated. The last layer
    starts at zero, so that what it parameterises starts as the identity.

    Args:
        in_features: size of x; 0 for a network of the context alone.
        context_features: size of the context.
        out_features: number of parameters it returns.
        width, depth: hidden layers.
    """

    def __init__(self, in_features: int, context_features: int, out_features: int, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.from_x = nnx.Linear(in_features, width, use_bias=False, rngs=rngs) if in_features else None
        self.from_context = nnx.Linear(context_features, width, rngs=rngs)
        self.hidden = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth - 1)])
        self.last = nnx.Linear(width, out_features, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def given(self, context: jax.Array) -> Given:
        """What does not depend on x."""
        start = weights(self.from_context).apply(self.from_context, context)
        from_x = None if self.from_x is None else jnp.asarray(self.from_x.kernel[...])
        return Given(start, from_x, [weights(layer) for layer in (*self.hidden, self.last)])

    def __call__(self, given: Given, x: jax.Array | None = None) -> jax.Array:
        h = given.start if given.from_x is None or x is None else given.start + contract(self.from_x, given.from_x, x)
        for layer, dense in zip(self.hidden, given.layers[:-1], strict=True):
            h = h + dense.apply(layer, nnx.silu(h))
        return given.layers[-1].apply(self.last, nnx.silu(h))

    def of_context(self, context: jax.Array) -> jax.Array:
        """A network of the context alone, features last: `(*batch, features) → (*batch, out)`."""
        return jnp.moveaxis(self(self.given(jnp.moveaxis(context, -1, 0))), 0, -1)


def soft_clip(x: jax.Array, bound: float) -> jax.Array:
    """bound · tanh(x / bound): the identity near 0, never beyond ± bound."""
    return bound * jnp.tanh(x / bound)
