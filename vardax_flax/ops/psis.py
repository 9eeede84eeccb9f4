"""Pareto smoothed importance sampling: the largest weights become quantiles of the tail fitted to them."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

PRIOR_SIZE, PRIOR_SHAPE = 10.0, 0.5  # observations that the weak prior on the shape is worth, and where it is centred


class Smoothed(NamedTuple):
    """Importance weights and what they are worth.

    Args:
        log_weights: normalised, `(*batch, n)`.
        shape: k̂ of the upper tail `(*batch,)`; −∞ where the weights of the tail are equal but for rounding.
        ess: effective sample size 1 / Σ w² of the smoothed weights `(*batch,)`.
    """

    log_weights: jax.Array
    shape: jax.Array
    ess: jax.Array


def tail_length(n: int) -> int:
    """Draws that make the tail: ⌈min(n / 5, 3 √n)⌉ (Vehtari et al. 2024)."""
    return math.ceil(min(0.2 * n, 3 * math.sqrt(n)))


def shape_limit(n: int) -> float:
    """Largest k̂ at which an estimate from n draws can be relied on: min(1 − 1 / log₁₀ n, 0.7) (Vehtari et al. 2024).

    Example:
        >>> shape_limit(1000)
        0.6666666666666667
    """
    return min(1 - 1 / math.log10(n), 0.7)


@partial(jnp.vectorize, signature="(n)->(),()")
def fit_pareto(excess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shape k and scale σ of a generalised Pareto distribution, density (1 + k x / σ)^(−1/k − 1) / σ, from draws x > 0.

    The profile likelihood is averaged over a grid of b = −k / σ (Zhang & Stephens 2009, *A new and efficient estimation method for the
    generalized Pareto distribution*).

    Args:
        excess: `(*batch, n)`, n ≥ 5, in increasing order, not all 0.

    Example:
        >>> k, sigma = fit_pareto(jnp.sort(jax.random.pareto(key, 2.0, (1000,)) - 1))  # k near 1/2
    """
    n = excess.shape[-1]
    grid = 30 + math.isqrt(n)
    largest = excess[-1]
    quartile = jnp.maximum(excess[int(n / 4 + 0.5) - 1], 1e-6 * largest)
    b = 1 / largest + (1 - jnp.sqrt(grid / (jnp.arange(1, grid + 1, dtype=excess.dtype) - 0.5))) / (3 * quartile)
    # b x < 1 by construction, up to rounding at the largest x
    shape_of = lambda b: jnp.log1p(-jnp.minimum(b * excess, 1 - jnp.finfo(excess.dtype).eps)).mean()  # noqa: E731
    k = jax.vmap(shape_of)(b)
    profile = n * (jnp.log(-b / k) - k - 1)
    mean = (b * jax.nn.softmax(jnp.where(jnp.isnan(profile), -jnp.inf, profile))).sum()
    shape = shape_of(mean)
    return shape, -shape / mean


@partial(jnp.vectorize, signature="(n)->(n),(),()")
def _smooth(log_ratios: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    n = log_ratios.shape[-1]
    m = tail_length(n)
    shifted = log_ratios - log_ratios.max()
    order = jnp.argsort(shifted)
    cutoff = jnp.exp(shifted[order[n - m - 1]])
    excess = jnp.exp(shifted[order[n - m :]]) - cutoff
    flat = excess[-1] <= math.sqrt(jnp.finfo(excess.dtype).eps)  # of weights up to 1: what differs is the rounding of the densities
    k, sigma = fit_pareto(jnp.where(flat, jnp.arange(1.0, m + 1, dtype=excess.dtype), excess))
    k = (m * k + PRIOR_SIZE * PRIOR_SHAPE) / (m + PRIOR_SIZE)
    levels = (jnp.arange(m, dtype=excess.dtype) + 0.5) / m
    safe = jnp.where(k == 0, 1, k)
    quantiles = cutoff + jnp.where(k == 0, -sigma * jnp.log1p(-levels), sigma * jnp.expm1(-safe * jnp.log1p(-levels)) / safe)
    smooth = shifted.at[order[n - m :]].set(jnp.minimum(jnp.log(quantiles), 0))  # no weight above the largest one seen
    log_weights = jax.nn.log_softmax(jnp.where(flat, shifted, smooth))
    return log_weights, jnp.where(flat, -jnp.inf, k), 1 / jnp.exp(2 * log_weights).sum()


def smooth(log_ratios: jax.Array) -> Smoothed:
    """Smooth importance ratios r = p / q of draws of q, and say how heavy their tail is.

    Below k = 1/2 the weights have a variance; above 0.7 an average under them is worthless at any practical number of draws (Vehtari,
    Simpson, Gelman, Yao & Gabry 2024, *Pareto smoothed importance sampling*).

    Args:
        log_ratios: log p(x) − log q(x) up to a constant `(*batch, n)`, n ≥ 25; −∞ where p is 0, not NaN.

    Example:
        >>> smooth(log_p - log_q).shape
    """
    return Smoothed(*_smooth(jnp.asarray(log_ratios)))
