"""What a velocity says about densities: the weights of its training loss, and log q along the probability-flow ODE."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from vardax_flax.diffusion.processes import NoiseProcess
from vardax_flax.diffusion.samplers import Velocity, base_mean, flow
from vardax_flax.ops.gaussian import standard_log_prob

Weighting = Literal["unit", "likelihood"]
EXACT_TRACE = 16  # components up to which the divergence is summed exactly


def weight(weighting: Weighting, level: jax.Array, density: jax.Array) -> jax.Array:
    """The weight of a level in the loss of the velocity.

    "unit" counts every level that is drawn alike, as Karras et al. (2022) do. "likelihood" makes the loss a bound on −log q up to a
    constant: ½ E‖D − x₀‖² integrated over σ⁻², which for the velocity is 1 / (1 + σ²) per unit of log σ, divided by the density that
    log σ is drawn with (Song et al. 2021, *Maximum likelihood training of score-based diffusion models*).
    """
    if weighting == "unit":
        return jnp.ones_like(level)
    return 1 / ((1 + jnp.square(level)) * density)


class LogProb(NamedTuple):
    """log q and, where the trace was estimated, the standard error of the estimate (0 where it is exact)."""

    value: jax.Array
    standard_error: jax.Array


def log_prob(
    velocity: Velocity, x: jax.Array, process: NoiseProcess, key: jax.Array, *, probes: int = 16, tolerance: float = 1e-5
) -> LogProb:
    """log q(x) of one state `(dim,)` by the probability-flow ODE (Chen et al. 2018; Song et al. 2021, equation 39).

    log q(x) = log N(u₁; μ₁, I) + ∫ ∇ · v dφ + dim log cos φ₀ over the path from u₀ = cos φ₀ x at the smallest angle to u₁ at the largest,
    where u is all but standard normal around μ₁ = cos φ₁ E[x₀]. Up to 16 components the divergence is the exact trace; above, the mean
    over `probes` Rademacher vectors w of wᵀ ∂v/∂u w (Hutchinson 1989), fixed along the path.
    """
    dim = x.shape[-1]
    low, high = (jnp.arctan(process.level(jnp.asarray(t, x.dtype))) for t in (process.first, process.last))
    exact = dim <= EXACT_TRACE
    directions = jnp.eye(dim, dtype=x.dtype) if exact else jax.random.rademacher(key, (probes, dim), x.dtype)

    def field(angle: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        v, push = jax.linearize(lambda u: velocity(u, angle), state[0])
        return v, (jax.vmap(push)(directions) * directions).sum(axis=-1)

    start = (jnp.cos(low) * x, jnp.zeros(len(directions), x.dtype))
    end, each = flow(field, start, low, high, tolerance=tolerance)
    base = standard_log_prob(end - base_mean(velocity, high, x)) + dim * jnp.log(jnp.cos(low))
    if exact:
        return LogProb(base + each.sum(), jnp.zeros((), x.dtype))
    return LogProb(base + each.mean(), each.std(ddof=1) / math.sqrt(probes))
