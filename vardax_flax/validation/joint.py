"""What two posteriors share beyond their marginals: distances in the metric of a covariance, and what sampling alone makes of them.

With mean differences δ, covariances F of the fast posterior and O of the oracle's, in d components,

    mahalanobis_fast      δᵀ F⁻¹ δ / d      squared distance of the oracle's mean, in units of the fast posterior
    spread_under_fast     tr(F⁻¹ O) / d     expected squared distance of the oracle's draws around their mean, likewise
    spread_under_oracle   tr(O⁻¹ F) / d     that of the fast posterior's draws, in units of the oracle

Equal covariances give 1 and 1; any others give at least one that is larger, whatever their marginals, for tr(A) / d · tr(A⁻¹) / d ≥ 1.
Dropped correlations leave the second at 1 and raise the third, invented ones the other way round.

A covariance estimated from n Gaussian draws is Wishart with ν = n − 1 degrees of freedom, so its inverse is too large by ν / (ν − d − 1):
that is divided out. What is left has the variance below, exactly, and is distributed as χ²_k / k of the same variance: exactly where the
inverted covariance is known, and nearly so otherwise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Moments(NamedTuple):
    """Gaussian summary: `mean` and `sd` (events, dim), `cov` (events, joint, joint) of the components `joint`, `n` draws or infinity."""

    mean: np.ndarray
    sd: np.ndarray
    cov: np.ndarray
    n: float


class Noise(NamedTuple):
    """Sampling distribution of a statistic between two estimates of one posterior: mean × χ²_k / k with k = `degrees`, or none at all."""

    mean: float
    degrees: float

    def beyond(self, value: float) -> float:
        """P(statistic of one event > value)."""
        if self.mean == 0.0 or math.isinf(self.degrees):
            return 0.0
        return float(stats.chi2.sf(self.degrees * value / self.mean, self.degrees))

    def average(self, values: np.ndarray, level: float) -> tuple[float, float, float]:
        """The average over events in units of its expectation, what it exceeds with probability `level`, and its p-value."""
        degrees, value = self.degrees * values.size, float(values.mean()) / self.mean
        return value, float(stats.chi2.isf(level, degrees) / degrees), float(stats.chi2.sf(degrees * value, degrees))


def enough(n: float, dim: int) -> bool:
    """Whether n draws give a covariance of dim components whose inverse is worth judging."""
    return n >= 4 * dim + 8


def joint_scores(fast: Moments, oracle: Moments, difference: np.ndarray) -> dict[str, np.ndarray]:
    """The three statistics at the top of this file, of known covariances or corrected for estimated ones, KL(fast ‖ oracle) in nats and
    Mahalanobis² / d of the mean difference under the oracle; each `(events,)`.

    NaN where there are too few draws, infinite where a covariance has no inverse.
    """
    n_events, dim = difference.shape
    names = ("kl_joint", "mahalanobis", "mahalanobis_fast", "spread_under_fast", "spread_under_oracle")
    if not enough(min(fast.n, oracle.n), dim):
        return {name: np.full(n_events, np.nan) for name in names}
    try:
        root_fast, root = np.linalg.cholesky(fast.cov), np.linalg.cholesky(oracle.cov)
    except np.linalg.LinAlgError:
        return {name: np.full(n_events, np.inf) for name in names}
    fast_by_oracle, oracle_by_fast = np.linalg.solve(root, root_fast), np.linalg.solve(root_fast, root)
    shift, shift_fast = ((np.linalg.solve(r, difference[..., None])[..., 0] ** 2).sum(axis=-1) for r in (root, root_fast))
    log_det = 2 * np.log(np.diagonal(fast_by_oracle, axis1=1, axis2=2)).sum(axis=-1)
    trace, trace_fast = (fast_by_oracle**2).sum(axis=(1, 2)), (oracle_by_fast**2).sum(axis=(1, 2))
    inflation_fast, inflation = (_noise(dim, other.n, math.inf).mean for other in (fast, oracle))
    return {
        "kl_joint": 0.5 * (trace + shift - dim - log_det),
        "mahalanobis": shift / dim,
        "mahalanobis_fast": shift_fast / dim / inflation_fast,
        "spread_under_fast": trace_fast / dim / inflation_fast,
        "spread_under_oracle": trace / dim / inflation,
    }


def joint_noise(fast: Moments, oracle: Moments, dim: int) -> dict[str, Noise]:
    """How each statistic varies between two estimates of one posterior from as many draws."""
    error = 1.0 / fast.n + 1.0 / oracle.n  # variance of a difference of means, in units of the covariance
    return {
        "mahalanobis_fast": Noise(error, _noise(dim, fast.n, 2.0).degrees),
        "spread_under_fast": Noise(1.0, _noise(dim, fast.n, oracle.n).degrees),
        "spread_under_oracle": Noise(1.0, _noise(dim, oracle.n, fast.n).degrees),
    }


def _noise(dim: int, n_inverted: float, n: float) -> Noise:
    """Of tr(A S) / dim, A the inverse of a sample covariance of `n_inverted` draws and S another of n; two draws are as good as one vector.

    E[(tr A S)²] = E[(tr A)²] + 2 E[tr A²] / (n − 1), with the moments of the inverse Wishart (von Rosen 1988, *Moments for the inverted
    Wishart distribution*).
    """
    nu = n_inverted - 1.0
    mean, square, variance = 1.0, float(dim), 0.0  # of a diagonal element of A; E[tr A²], Var[tr A]
    if math.isfinite(nu):
        mean = nu / (nu - dim - 1)
        common = 2.0 * mean**2 / ((nu - dim) * (nu - dim - 3))  # covariance of two diagonal elements
        diagonal, beside = common * (nu - dim), 0.5 * common * (nu - dim - 1)
        square = dim * (diagonal + mean**2) + dim * (dim - 1) * beside
        variance = dim * diagonal + dim * (dim - 1) * common
    total = variance + 2.0 * square / (n - 1.0)
    return Noise(mean, 2.0 * (dim * mean) ** 2 / total if total > 0 else math.inf)
