"""Draws of a score head given observations beyond those in its context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vardax_flax.diffusion.guidance import Spread, guide, probes, spread
from vardax_flax.diffusion.samplers import SamplerName, Velocity
from vardax_flax.heads.score import ScoreDiffusionHead

SAMPLER: SamplerName = "stochastic_heun"  # forgets early errors of the guess: two modes keep the shape that "heun" would blur


def guided_sample(
    head: ScoreDiffusionHead,
    context: jax.Array,
    key: jax.Array,
    n: int,
    observe: Callable[[jax.Array, Any], jax.Array],
    y: jax.Array,
    noise_std: jax.Array,
    rows: Any = None,
    inflation: float = 1.0,
) -> jax.Array:
    """n draws of **approximately** q(x | c) N(y; A(x), diag σ²), for observations y that the head was not trained with.

    The velocity is bent by the gradient of log p(y | u) at each step (`diffusion.guidance.guide`; Rozet & Louppe 2023; Chung et al. 2023).
    Exact, but for the steps of the sampler, if the head is its Gaussian and A linear. Measured elsewhere: normals three times narrower
    than that Gaussian come out within 0.1 sd in the mean and 6 % in the sd, the weights of two narrow modes within 0.1. An observation that
    the head thinks all but impossible is answered badly. With nothing observed the draws are those of the sampler "stochastic_heun".

    Args:
        head: trained or not.
        context: c `(*batch, features)`.
        key: random key.
        n: draws for each context.
        observe: A, one state `(dim,)` of the head and its row of `rows` → `(m,)`.
        y: `(*batch, m)`; NaN where not observed.
        noise_std: σ `(*batch, m)`.
        rows: what else `observe` needs, arrays with the leading axes of the context.
        inflation: of the variance of what the state predicts while it is noisy; 1 is exact where anything is.

    Returns:
        `(*batch, n, dim)`.

    Example:
        >>> draws = guided_sample(head, context, jax.random.key(0), 1000, lambda x, _: x[:1], y, 0.1 * jnp.ones_like(y))
    """
    lead = context.shape[:-1]
    points = jnp.asarray(probes(head.dim), context.dtype)

    def to_state(z: jax.Array, context: jax.Array) -> jax.Array:
        return z if head.affine is None else head.affine.inverse(z, context)[0]

    def misfit(row: Any) -> Callable[[jax.Array], jax.Array]:
        context, y, noise_std, more = row
        seen = ~jnp.isnan(y)
        return lambda z: jnp.where(seen, observe(to_state(z, context), more) - jnp.where(seen, y, 0), 0) / jnp.where(seen, noise_std, 1)

    given = (context, y, noise_std, rows)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(lead) :]), given)
    # the misfit differs from what is predicted by a constant, which has no spread
    spreads = jax.vmap(lambda row: spread(jax.vmap(misfit(row))(points)))(flat)

    def bend(velocity: Velocity, row: tuple[Any, Spread]) -> Velocity:
        return guide(velocity, misfit(row[0]), row[1], inflation)

    return head.sample_bent(context, key, n, SAMPLER, bend, (flat, spreads))
