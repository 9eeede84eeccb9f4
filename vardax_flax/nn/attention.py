"""Blocks for sets of vectors, some of which may be absent: pooling by weighted means, and attention.

Tokens are `(*batch, n, width)`, `present` `(*batch, n)` tells which of them count. What is absent must be finite, and changes nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn.mlp import ResidualMLP
from vardax_flax.nn.stack import make_stack, scan_stack

LEAST_WEIGHT = 1e-3  # of a present token in a weighted mean: the sum of the weights never underflows


def attend(query: jax.Array, key: jax.Array, value: jax.Array, present: jax.Array, heads: int) -> jax.Array:
    """softmax(q kᵀ / √d) v over the present tokens, in `heads` parts: `(*batch, t, width), (*batch, n, width) × 2 → (*batch, t, width)`.

    Reference: Vaswani et al. 2017, *Attention is all you need*, equation 1. At least one token must be present.
    """
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (query, key, value))
    logits = jnp.einsum("...thd,...nhd->...htn", q, k) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(present[..., None, None, :], logits, jnp.finfo(logits.dtype).min), axis=-1)
    out = jnp.einsum("...htn,...nhd->...thd", weights, v)
    return out.reshape(*out.shape[:-2], -1)


class AttentionBlock(nnx.Module):
    """h ← h + W₀ attend(norm h), h ← h + W₂ silu(W₁ norm h); starts as the identity."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros_init()
        self.heads = heads
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.mix = nnx.Linear(width, width, kernel_init=zeros, rngs=rngs)
        self.norm_inner = nnx.LayerNorm(width, rngs=rngs)
        self.inner = nnx.Linear(width, 2 * width, rngs=rngs)
        self.outer = nnx.Linear(2 * width, width, kernel_init=zeros, rngs=rngs)

    def __call__(self, h: jax.Array, present: jax.Array) -> jax.Array:
        q, k, v = jnp.split(self.qkv(self.norm(h)), 3, axis=-1)
        h = h + self.mix(attend(q, k, v, present, self.heads))
        return h + self.outer(nnx.silu(self.inner(self.norm_inner(h))))


class AttentionPool(nnx.Module):
    """Tokens → one vector: `depth` blocks of self-attention, then the answers to learned queries side by side.

    A learned token that is always present joins the others, so that an empty set has an answer too. Equivariant to the order of the tokens
    until it is pooled, invariant after (Lee et al. 2019, *Set transformer*).

    Args:
        width: of a token, a multiple of `heads`.
        depth, heads: of the blocks.
        queries: their number.

    Example:
        >>> pool = AttentionPool(64, depth=2, heads=4, queries=4, rngs=nnx.Rngs(0))
        >>> pool(jnp.zeros((8, 20, 64)), jnp.ones((8, 20), bool)).shape
        (8, 256)
    """

    def __init__(self, width: int, *, depth: int, heads: int, queries: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.features = queries * width
        self.empty = nnx.Param(jax.random.normal(rngs.params(), (1, width)))
        self.query = nnx.Param(jax.random.normal(rngs.params(), (queries, width)))
        self.blocks = make_stack(lambda r: AttentionBlock(width, heads, rngs=r), depth, rngs) if depth else None
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.key_value = nnx.Linear(width, 2 * width, rngs=rngs)

    def __call__(self, tokens: jax.Array, present: jax.Array) -> jax.Array:
        lead = tokens.shape[:-2]
        h = jnp.concatenate([tokens, jnp.broadcast_to(self.empty[...], (*lead, 1, tokens.shape[-1]))], axis=-2)
        present = jnp.concatenate([present, jnp.ones((*lead, 1), bool)], axis=-1)
        if self.blocks is not None:
            h = scan_stack(self.blocks, lambda block, h: block(h, present), h)
        k, v = jnp.split(self.key_value(self.norm(h)), 2, axis=-1)
        query = jnp.broadcast_to(self.query[...], (*lead, *self.query[...].shape))
        return attend(query, k, v, present, self.heads).reshape(*lead, -1)


class MeanPool(nnx.Module):
    """Tokens → one vector: of h = φ(token) the mean, the mean with weights w(h) > 0, and the logarithm of their sum, number by number.

    Reference: Zaheer et al. 2017, *Deep sets*, with weights for observations that tell more than others: the mean of numbers with errors of
    different size is a weighted one. The sum of the weights says how much was seen; of nothing all three are 0.

    Args:
        width: of a token.
        depth: residual blocks of φ.

    Example:
        >>> pool = MeanPool(64, depth=2, rngs=nnx.Rngs(0))
        >>> pool(jnp.zeros((8, 20, 64)), jnp.ones((8, 20), bool)).shape
        (8, 192)
    """

    def __init__(self, width: int, *, depth: int, rngs: nnx.Rngs) -> None:
        self.features = 3 * width
        self.each = ResidualMLP(width, width, width=width, depth=depth, rngs=rngs)
        self.weight = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, tokens: jax.Array, present: jax.Array) -> jax.Array:
        h = self.each(tokens)
        here = present[..., None].astype(h.dtype)
        weight = here * (nnx.softplus(self.weight(h)) + LEAST_WEIGHT)
        count, total = here.sum(axis=-2), weight.sum(axis=-2)
        mean = (here * h).sum(axis=-2) / jnp.maximum(count, 1)
        weighted = (weight * h).sum(axis=-2) / jnp.where(count > 0, total, 1)
        return jnp.concatenate([mean, weighted, jnp.log1p(total)], axis=-1)
