"""Pareto-smoothed importance sampling: weights whose largest are replaced by what their own tail predicts, and how heavy that tail is."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from vardax_flax.core.config import require

SMALLEST_TAIL = 5


def k_limit(n: int) -> float:
    """k̂ up to which n draws are enough: min(1 − 1/log₁₀ n, 0.7).

    Example:
        >>> round(k_limit(1000), 3)
        0.667
    """
    return min(1 - 1 / math.log10(n), 0.7)


def psis(log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Smoothed log weights and the shape k̂ of the tail of the weights.

    A generalized Pareto distribution p(w) ∝ (1 + k (w − u)/σ)^{−1 − 1/k} is fitted to the M = min(0.2 S, 3 √S) largest of S weights, u the
    largest below them, and they are replaced by its quantiles at (i − ½)/M, at most the largest weight. With k̂ below
    min(1 − 1/log₁₀ S, 0.7) averages can be trusted; the variance of the weights is finite for k < ½ (Vehtari, Simpson, Gelman, Yao & Gabry
    2024, *Pareto smoothed importance sampling*; the fit by Zhang & Stephens 2009, *A new and efficient estimation method for the
    generalized Pareto distribution*).

    Args:
        log_weights: `(*batch, S)` up to a constant; −∞ is a weight of zero.

    Returns:
        log weights `(*batch, S)` of sum 1, in the order given, and k̂ `(*batch,)`: 0 where the tail is flat, so that nothing needs
        smoothing; ∞ where nothing can be said: a weight that is NaN or infinite, or too few that are positive.

    Raises:
        ConfigError: fewer than 25 weights.

    Example:
        >>> weights, k_hat = psis(log_joint - log_q)
        >>> mean = (jnp.exp(weights)[..., None] * draws).sum(axis=-2)
    """
    n = log_weights.shape[-1]
    tail = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    require(tail >= SMALLEST_TAIL, "at least 25 weights", n, "draw more")
    return _smooth(log_weights, tail)


@functools.partial(jax.jit, static_argnames="tail")
def _smooth(log_weights: jax.Array, tail: int) -> tuple[jax.Array, jax.Array]:
    order = jnp.argsort(log_weights, axis=-1)
    ranked = jnp.take_along_axis(log_weights, order, axis=-1)
    ranked = ranked - ranked[..., -1:]
    cut, largest = ranked[..., -tail - 1 : -tail], ranked[..., -tail:]
    # w − u as w (1 − u/w), which keeps its digits where weights are nearly equal
    above = jnp.where(jnp.isneginf(largest), 0, jnp.exp(largest) * -jnp.expm1(jnp.where(jnp.isneginf(cut), -jnp.inf, cut - largest)))
    # of weights up to 1: what differs is the rounding of the densities
    flat = above[..., -1] <= math.sqrt(jnp.finfo(above.dtype).eps)
    safe = jnp.where(flat[..., None], jnp.arange(1, tail + 1, dtype=above.dtype) / tail, above)
    k_hat, scale = _fit_pareto(safe)
    share = (jnp.arange(1, tail + 1, dtype=above.dtype) - 0.5) / tail
    k = k_hat[..., None]
    near_zero = jnp.abs(k) < 1e-4
    exact = jnp.expm1(-k * jnp.log1p(-share)) / jnp.where(near_zero, 1, k)
    quantiles = jnp.exp(cut) + scale[..., None] * jnp.where(near_zero, -jnp.log1p(-share), exact)
    usable = jnp.isfinite(k_hat) & ~flat
    smoothed = jnp.where(usable[..., None], jnp.minimum(jnp.log(quantiles), 0), largest)
    back = jnp.argsort(order, axis=-1)
    weights = jnp.take_along_axis(jnp.concatenate([ranked[..., :-tail], smoothed], axis=-1), back, axis=-1)
    bad = jnp.isnan(log_weights).any(axis=-1) | ~jnp.isfinite(log_weights.max(axis=-1))
    k_hat = jnp.where(bad | ~jnp.isfinite(k_hat), jnp.inf, jnp.where(flat, 0, k_hat))
    return weights - jax.nn.logsumexp(weights, axis=-1, keepdims=True), k_hat


def _fit_pareto(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shape k and scale σ of exceedances `(*batch, M)` in increasing order.

    θ = −k/σ is averaged over a profile posterior on a grid; k is then drawn a little towards ½, by ten observations' worth.
    """
    size = x.shape[-1]
    points = 30 + math.isqrt(size)
    grid = 1 - jnp.sqrt(points / (jnp.arange(1, points + 1, dtype=x.dtype) - 0.5))
    quartile = x[..., max(int(size / 4 + 0.5) - 1, 0)][..., None]
    theta = 1 / x[..., -1:] + grid / (3 * quartile)
    shape = jnp.log1p(-theta[..., None] * x[..., None, :]).mean(axis=-1)
    profile = size * (jnp.log(-theta / shape) - shape - 1)
    mean = (jax.nn.softmax(profile, axis=-1) * theta).sum(axis=-1)
    k = jnp.log1p(-mean[..., None] * x).mean(axis=-1)
    return (k * size + 5) / (size + 10), -k / mean
