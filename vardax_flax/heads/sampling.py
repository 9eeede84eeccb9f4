"""What heads share: noise that does not depend on the batch it is drawn in, and a mode by ascent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vardax_flax.ops.blocks import lengthen, map_blocks

SMALL = 64  # components of a state that is not a field
BLOCK, ACCELERATOR_BLOCK = 512, 2**18  # draws at a time: a CPU wants them in its cache, an accelerator wants to be filled


def element_noise(context: jax.Array, key: jax.Array, n: int, dim: int) -> jax.Array:
    """Standard normal noise `(*batch, n, dim)`: element i of the flattened batch has its own key, whatever the batch size.

    A batch that is padded or cut therefore gives the same draws for the same rows.
    """
    lead = context.shape[:-1]
    # of flat shape: the same numbers, in loops that are long enough for a CPU's vector registers
    noise = jax.vmap(lambda k: jax.random.normal(k, (n * dim,), context.dtype))(element_keys(lead, key))
    return noise.reshape(*lead, n, dim)


def in_blocks(draw: Callable[[Any, Any], jax.Array], given: Any, noise: Any, n: int, dim: int) -> jax.Array:
    """draw(given, noise) `(elements, n, dim)`, some hundreds of draws at a time on a CPU: what a network computes stays in its cache.

    Args:
        draw: leaves of what is given `(g, …)` and of noise `(g, m, …)` → `(g, m, dim)`, rows that do not see each other.
        given: a tree of arrays `(elements, …)`, such as contexts.
        noise: a tree of arrays `(elements, n, …)`.
        n: draws for each element.
        dim: size of a draw; of large fields fewer are drawn at a time.
    """
    block = max(1, (BLOCK if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK) * SMALL // max(dim, SMALL))
    elements = jax.tree.leaves(noise)[0].shape[0]
    parts = -(-n // block)  # of the draws of one element
    size = -(-n // parts)
    units = elements * parts
    rounds = -(-units // max(1, block // size))
    together = -(-units // rounds)  # such parts at a time

    def repeat(leaf: jax.Array) -> jax.Array:
        leaf = lengthen(jnp.repeat(leaf, parts, axis=0), rounds * together, 0)
        return leaf.reshape(rounds, together, *leaf.shape[1:])

    def cut(leaf: jax.Array) -> jax.Array:
        rest = leaf.shape[2:]
        leaf = lengthen(leaf, parts * size, 1).reshape(units, size, *rest)
        return lengthen(leaf, rounds * together, 0).reshape(rounds, together, size, *rest)

    xs = (jax.tree.map(repeat, given), jax.tree.map(cut, noise))
    out = draw(*jax.tree.map(lambda leaf: leaf[0], xs))[None] if rounds == 1 else jax.lax.map(lambda x: draw(*x), xs)
    out = out.reshape(rounds * together, size, -1)[:units]
    return out.reshape(elements, parts * size, -1)[:, :n]


def rows_in_blocks(function: Callable[[Any], jax.Array], rows: Any) -> jax.Array:
    """function(rows) for a tree of arrays `(n, …)`, some hundreds of rows at a time on a CPU."""
    return map_blocks(function, rows, BLOCK if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK)


def element_keys(lead: tuple[int, ...], key: jax.Array) -> jax.Array:
    """A key for each element of a batch, flattened."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(math.prod(lead), dtype=jnp.uint32))


def ascend(log_prob: Callable[[jax.Array], jax.Array], starts: jax.Array, *, steps: int = 100, rate: float = 0.02) -> jax.Array:
    """The mode of a density: Adam ascent from the best of the starting points, keeping the best point met.

    Args:
        log_prob: `(*batch, dim) → (*batch,)`.
        starts: `(*batch, n, dim)` candidates, usually draws.
        steps, rate: of the ascent, in standardised units; the rate falls to zero as a cosine.
    """
    values = jax.vmap(log_prob, in_axes=-2, out_axes=-1)(starts)
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)  # a start whose density is not to be had is not the best
    best = jnp.take_along_axis(starts, values.argmax(axis=-1)[..., None, None], axis=-2)[..., 0, :]
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    ascent = jax.value_and_grad(lambda x: -log_prob(x).sum())

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        x, opt_state, best, best_value = carry
        updates, opt_state = optimizer.update(ascent(x)[1], opt_state)
        x = optax.apply_updates(x, updates)
        value = log_prob(x)
        better = value > best_value
        return (x, opt_state, jnp.where(better[..., None], x, best), jnp.where(better, value, best_value)), None

    carry = (best, optimizer.init(best), best, log_prob(best))
    return jax.lax.scan(step, carry, length=steps)[0][2]
