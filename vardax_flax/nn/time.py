"""Networks that also know a time, such as a level of noise."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn.stack import make_stack, scan_stack

HALF = 32  # frequencies of a time


def time_features(t: jax.Array) -> jax.Array:
    """sin and cos of t at 32 frequencies from 0.5 to 50: `(*batch,) → (*batch, 64)` (Vaswani et al. 2017)."""
    frequencies = jnp.exp(jnp.linspace(math.log(0.5), math.log(50.0), HALF, dtype=t.dtype))
    angle = t[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class TimedBlock(nnx.Module):
    """h ← h + W₂ silu(W₁ ((1 + a) LayerNorm(h)) + b), a and b linear in the features of the time; starts as the identity."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.from_time = nnx.Linear(2 * HALF, 2 * width, rngs=rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.outer = nnx.Linear(width, width, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, h: jax.Array, features: jax.Array) -> jax.Array:
        scale, shift = jnp.split(self.from_time(features), 2, axis=-1)
        return h + self.outer(nnx.silu(self.inner(self.norm(h) * (1 + scale)) + shift))


class TimedMLP(nnx.Module):
    """Residual network of a vector, a time and a context, `(*batch, in), (*batch,), (*batch, context) → (*batch, out)`.

    The leading axes broadcast: one time, or one context, serves many vectors. The last layer starts at zero.

    Args:
        in_features, context_features, out_features: sizes.
        width: of the hidden layers.
        depth: number of residual blocks.

    Example:
        >>> net = TimedMLP(2, 8, 2, width=64, depth=3, rngs=nnx.Rngs(0))
        >>> net(jnp.zeros((5, 2)), jnp.zeros(()), jnp.zeros(8)).shape
        (5, 2)
    """

    def __init__(self, in_features: int, context_features: int, out_features: int, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.from_x = nnx.Linear(in_features, width, rngs=rngs)
        self.from_context = nnx.Linear(context_features, width, use_bias=False, rngs=rngs)
        self.blocks = make_stack(lambda r: TimedBlock(width, rngs=r), depth, rngs)
        self.last = nnx.Linear(width, out_features, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
        features = time_features(t)
        lead = jnp.broadcast_shapes(x.shape[:-1], t.shape, context.shape[:-1])
        h = jnp.broadcast_to(self.from_x(x) + self.from_context(context), (*lead, self.from_x.out_features))
        h = scan_stack(self.blocks, lambda block, h: block(h, features), h)
        return self.last(nnx.silu(h))
