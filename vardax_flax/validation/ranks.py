"""Tests of uniform ranks, exact at finite numbers of runs and draws.

Notation: N runs with ranks r_n in {0 … L}. A grid of levels 0 < z_1 < … < z_K < 1 gives nested counts c_i = #{n : event i}, with
c_i ~ Binomial(N, z_i) under the null. For ranks the event is r_n < j_i with z_i = j_i / (L + 1); for coverage it is "inside the interval".
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from vardax_flax.core.config import require


class Band(NamedTuple):
    """Simultaneous band of nested counts: with probability 1 - level, lower_i <= c_i <= upper_i for every i.

    Args:
        z: levels `(K,)`.
        lower: smallest count inside `(K,)`.
        upper: largest count inside `(K,)`.
        gamma: pointwise two-sided level that gives the simultaneous one.
        n_runs: N.
    """

    z: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    gamma: float
    n_runs: int


def randomised_ranks(samples: jax.Array, truth: jax.Array, key: jax.Array) -> jax.Array:
    """Rank of the truth among draws, ties broken at random: #{l : f_l < f*} + Uniform{0 … #{l : f_l = f*}}.

    Args:
        samples: `(*batch, L)` values of a test quantity at the draws.
        truth: `(*batch,)` its values at the truth.
        key: for the ties.

    Returns:
        int32 `(*batch,)` in {0 … L}; uniform if truth and draws are exchangeable.

    Example:
        >>> randomised_ranks(jnp.array([1.0, 2.0, 4.0]), jnp.array(3.0), jax.random.key(0))
        Array(2, dtype=int32)
    """
    below = jnp.sum(samples < truth[..., None], axis=-1)
    ties = jnp.sum(samples == truth[..., None], axis=-1)
    return (below + jax.random.randint(key, ties.shape, 0, ties + 1)).astype(jnp.int32)


def rank_grid(n_runs: int, n_samples: int) -> np.ndarray:
    """Integer thresholds j_i = floor(i (L+1) / K), i = 1 … K - 1, with K = min(N, L + 1)."""
    size = min(n_runs, n_samples + 1)
    return np.arange(1, size) * (n_samples + 1) // size


def rank_counts(ranks: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Counts c_i = #{n : r_n < j_i}.

    Args:
        ranks: `(N, m)` integers of m quantities.
        grid: `(K,)` thresholds j_i.

    Returns:
        `(m, K)`.
    """
    ordered = np.sort(ranks, axis=0)
    return np.stack([np.searchsorted(column, grid, side="left") for column in ordered.T])


def gamma_statistic(counts: np.ndarray, z: np.ndarray, n_runs: int) -> np.ndarray:
    """γ = 2 min_i min{P(Bin(N, z_i) ≤ c_i), P(Bin(N, z_i) ≥ c_i)} (Modrák et al. 2023; Säilynoja et al. 2022).

    Args:
        counts: `(*m, K)` nested counts.
        z: `(K,)` their probabilities under the null.
        n_runs: N.

    Returns:
        `(*m,)`, small when some count is improbable.

    Example:
        >>> grid = rank_grid(1000, 99)
        >>> gamma = gamma_statistic(rank_counts(ranks, grid), grid / 100, 1000)
    """
    tails = np.minimum(stats.binom.cdf(counts, n_runs, z), stats.binom.sf(np.asarray(counts) - 1, n_runs, z))
    return np.asarray(np.minimum(1.0, 2.0 * np.min(tails, axis=-1)))


def _bounds(gamma: float, z: np.ndarray, n_runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest count whose two-sided tail probability exceeds γ, for every level."""
    tail = 0.5 * gamma
    lower = stats.binom.ppf(tail, n_runs, z).astype(int)
    upper = (n_runs - stats.binom.ppf(tail, n_runs, 1.0 - z)).astype(int)
    return np.clip(lower, 0, n_runs), np.clip(upper, 0, n_runs)


def _inside_probability(lower: np.ndarray, upper: np.ndarray, z: np.ndarray, n_runs: int) -> float:
    """P(lower_i ≤ c_i ≤ upper_i for all i) by forward recursion: c_{i+1} - c_i | c_i ~ Bin(N - c_i, (z_{i+1} - z_i) / (1 - z_i))."""
    log_factorial = special.gammaln(np.arange(n_runs + 1) + 1.0)
    first, level = 0, 0.0
    mass: np.ndarray = np.ones(1)
    for low, high, nxt in zip(lower, upper, z, strict=True):
        probability = (nxt - level) / (1.0 - level)
        left = n_runs - (first + np.arange(mass.size))
        # increments beyond ten standard deviations carry less than rounding error
        mean = left[[0, -1]] * probability
        reach = 10.0 * np.sqrt(mean) + 30.0
        least = max(0, int(low) - first - mass.size + 1, int(mean[1] - reach[1]))
        most = min(int(high) - first, int(left[0]), int(mean[0] + reach[0]))
        if most < least or high < low:
            return 0.0
        step = np.arange(least, most + 1)
        rest = left[:, None] - step
        log_pmf = log_factorial[left][:, None] - log_factorial[step] - log_factorial[np.maximum(rest, 0)]
        log_pmf += step * np.log(probability) + rest * np.log1p(-probability)
        joint = np.where(rest >= 0, mass[:, None] * np.exp(np.where(rest >= 0, log_pmf, 0.0)), 0.0)
        target = first + np.arange(mass.size)[:, None] + step - int(low)
        kept = (target >= 0) & (target <= high - low)
        mass = np.bincount(target[kept], weights=joint[kept], minlength=int(high - low) + 1)
        first, level = int(low), float(nxt)
    return float(mass.sum())


def gamma_p_value(gamma: float, z: np.ndarray, n_runs: int) -> float:
    """P(γ of N uniform ranks ≤ γ observed), exact: one minus the probability that every count lies strictly inside.

    Args:
        gamma: observed statistic.
        z: `(K,)` increasing levels in (0, 1).
        n_runs: N.

    Example:
        >>> gamma_p_value(1.0, np.array([0.5]), 10)
        1.0
    """
    if gamma >= 1.0:
        return 1.0
    if gamma < 1e-10:  # where the difference to 1 loses its digits: the union bound over levels, at most K times too large
        return float(gamma * len(z))
    # a relative 1e-9 makes the observed count itself fall outside whatever the rounding of the two tails
    lower, upper = _bounds(gamma * (1.0 + 1e-9), z, n_runs)
    return min(1.0, max(0.0, 1.0 - _inside_probability(lower, upper, z, n_runs)))


@functools.lru_cache(maxsize=64)
def _band(levels: tuple[float, ...], n_runs: int, level: float) -> Band:
    z = np.asarray(levels)
    low, high = np.log(level / (8.0 * len(levels))), np.log(level)
    for _ in range(18):
        middle = 0.5 * (low + high)
        outside = 1.0 - _inside_probability(*_bounds(float(np.exp(middle)), z, n_runs), z, n_runs)
        low, high = (middle, high) if outside <= level else (low, middle)
    gamma = float(np.exp(low))
    return Band(z, *_bounds(gamma, z, n_runs), gamma, n_runs)


def ecdf_band(z: np.ndarray, n_runs: int, level: float = 0.05) -> Band:
    """Simultaneous 1 - level band of the nested counts, by bisection on γ (Säilynoja et al. 2022).

    Args:
        z: `(K,)` increasing levels in (0, 1).
        n_runs: N.
        level: probability that uniform ranks leave the band anywhere, at most.

    Raises:
        ConfigError: levels outside (0, 1) or not increasing, or a `level` outside (0, 1).

    Example:
        >>> band = ecdf_band(rank_grid(1000, 99) / 100, 1000)
    """
    z = np.asarray(z, float)
    require(bool(z.size and z[0] > 0 and z[-1] < 1 and (np.diff(z) > 0).all()), "increasing levels in (0, 1)", z, "sort them")
    require(0 < level < 1, "0 < level < 1", level, "pass such a level")
    return _band(tuple(z.tolist()), n_runs, float(level))


def chi2_uniform(ranks: np.ndarray, n_samples: int, n_bins: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's χ² = Σ_b (o_b - N p_b)² / (N p_b) of integer ranks in at most `n_bins` bins with N p_b ≥ 10.

    Args:
        ranks: `(N, m)`.
        n_samples: L.
        n_bins: upper limit of the number of bins.

    Returns:
        statistic `(m,)` and p-value `(m,)`.

    Raises:
        ConfigError: fewer than 20 runs or 1 draw, which leave no two bins.

    Example:
        >>> statistic, p = chi2_uniform(ranks, 99)
    """
    n_runs = ranks.shape[0]
    require(n_runs >= 20 and n_samples >= 1, "at least 20 runs and 1 draw", (n_runs, n_samples), "run more")
    n_bins = min(n_bins, n_samples + 1, n_runs // 10)
    while n_runs * ((n_samples + 1) // n_bins) < 10 * (n_samples + 1):  # the smallest of unequal bins counts
        n_bins -= 1
    edges = np.arange(n_bins + 1) * (n_samples + 1) // n_bins
    expected = n_runs * np.diff(edges) / (n_samples + 1)
    observed = np.diff(rank_counts(ranks, edges), axis=-1)
    statistic = ((observed - expected) ** 2 / expected).sum(axis=-1)
    return statistic, stats.chi2.sf(statistic, n_bins - 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment, valid under any dependence: p̃_(i) = max_{k ≤ i} min(1, (m - k + 1) p_(k)).

    Args:
        p_values: `(m,)`.

    Example:
        >>> holm(np.array([0.01, 0.04])).tolist()
        [0.02, 0.04]
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)
    scaled = np.minimum(1.0, p_values[order] * np.arange(p_values.size, 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted


def detectable(band: Band, power: float = 0.8) -> dict[str, float]:
    """Smallest Gaussian defects that leave the band with the given power, judged at the single best level (a lower bound on the power).

    A mean shifted by δ posterior standard deviations has the rank distribution F(z) = Φ(Φ⁻¹(z) + δ), a standard deviation scaled by s
    has F(z) = Φ(s Φ⁻¹(z)).

    Args:
        band: of ECDF counts.
        power: wanted probability of detection.

    Returns:
        `shift` in posterior standard deviations, `narrow` < 1 < `wide` as ratios of standard deviations; NaN where the band is too wide.

    Example:
        >>> detectable(ecdf_band(rank_grid(1000, 99) / 100, 1000))["shift"] < 0.2
        True
    """
    normal = special.ndtri(band.z)

    def reaches(cdf: np.ndarray) -> bool:
        out = stats.binom.cdf(band.lower - 1, band.n_runs, cdf) + stats.binom.sf(band.upper, band.n_runs, cdf)
        return bool(out.max() >= power)

    def smallest(defect: float, of: str) -> float:
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = 0.5 * (low + high)
            size = defect * middle
            cdf = special.ndtr(normal + size) if of == "shift" else special.ndtr(np.exp(size) * normal)
            low, high = (low, middle) if reaches(cdf) else (middle, high)
        return float("nan") if high == 1.0 else defect * high

    return {"shift": smallest(4.0, "shift"), "narrow": float(np.exp(smallest(-4.0, "sd"))), "wide": float(np.exp(smallest(4.0, "sd")))}


def rank_shape(ranks: np.ndarray, n_samples: int) -> str:
    """What the strongest departure of one quantity's ranks from uniformity looks like, in words.

    The mean and the variance of u = (r + 1/2)/(L + 1) are compared with 1/2 and 1/12 in units of their standard errors under the null.

    Args:
        ranks: `(runs,)`.
        n_samples: L.

    Example:
        >>> rank_shape(np.zeros(100), 99)
        'draws too high'
    """
    u = (ranks + 0.5) / (n_samples + 1)
    shift = (u.mean() - 0.5) * math.sqrt(12 * u.size)
    width = (np.mean((u - 0.5) ** 2) - (1 - (n_samples + 1) ** -2) / 12) * math.sqrt(180 * u.size)
    if max(abs(shift), abs(width)) < 2.5:
        return "uneven ranks"
    if abs(width) > abs(shift):
        return "draws too narrow" if width > 0 else "draws too wide"
    return "draws too low" if shift > 0 else "draws too high"
