"""Coverage of credible sets at their nominal probability, exact at a finite number of draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Simulator
from vardax_flax.validation.rank_pass import RankPass, rank_pass, refused
from vardax_flax.validation.ranks import ecdf_band, gamma_p_value, gamma_statistic, holm
from vardax_flax.validation.result import GateResult, assert_passed

LEVELS = tuple(round(0.05 * k, 2) for k in range(2, 20))


def coverage(
    model: Any,
    simulator: Simulator,
    *,
    key: jax.Array,
    n_runs: int = 2000,
    n_samples: int = 999,
    levels: Sequence[float] = LEVELS,
    error: float = 0.05,
    batch_size: int | None = None,
) -> GateResult:
    """Test that central intervals (per dimension) and highest-density sets hold the truth as often as they say.

    With rank r among L draws, the central interval between order statistics j and L + 1 - j covers iff j ≤ r ≤ L - j, with probability
    1 - 2j / (L + 1); the highest-density set of level k / (L + 1) covers iff fewer than k draws have a larger log q. Both are exact at any
    L. Counts over increasing levels are nested, so their simultaneous band and p-value are those of γ; Holm over sets.

    Args:
        model: a `Posterior`; without density, highest-density sets are left out and the reason noted.
        simulator: of the joint distribution.
        key: random key.
        n_runs: N independent runs.
        n_samples: L draws a run.
        levels: nominal probabilities, moved to the nearest that L attains exactly.
        error: family-wise error.
        batch_size: runs computed at once; does not change the result.

    Returns:
        `statistic` is the smallest adjusted p-value, `bound` the error; `details` holds the curves and bands.

    Raises:
        ConfigError: sizes too small, levels outside (0, 1), or draws of the wrong shape.

    Example:
        >>> assert_coverage(coverage(model, simulator, key=jax.random.key(0)))
    """
    ranked = rank_pass(model, simulator, key=key, n_runs=n_runs, n_samples=n_samples, batch_size=batch_size, quantities="marginals")
    return coverage_from_ranks(ranked, levels=levels, error=error)


def _attainable(levels: Sequence[float], n_samples: int, central: bool) -> np.ndarray:
    """Integers (j of central intervals, k of highest-density sets) of the levels nearest to the wanted, in order of increasing level."""
    wanted = np.sort(np.asarray(levels, float))
    require(bool(wanted.size and wanted[0] > 0 and wanted[-1] < 1), "levels in (0, 1)", levels, "pass such levels")
    size = n_samples + 1
    if central:
        return np.unique(np.clip(np.round(0.5 * (1.0 - wanted) * size), 1, n_samples // 2))[::-1].astype(int)
    return np.unique(np.clip(np.round(wanted * size), 1, n_samples)).astype(int)


def coverage_from_ranks(ranked: RankPass, *, levels: Sequence[float] = LEVELS, error: float = 0.05) -> GateResult:
    """The verdict on coverage from ranks already computed: marginals give central intervals, log q highest-density sets.

    Args:
        ranked: from `rank_pass`.
        levels: nominal probabilities.
        error: family-wise error.

    Raises:
        ConfigError: levels or `error` outside (0, 1), or ranks with neither a marginal nor log q.

    Example:
        >>> result = coverage_from_ranks(rank_pass(model, simulator, key=key, n_samples=999))
    """
    require(0 < error < 1, "0 < error < 1", error, "pass such a level")
    n_runs, n_samples = ranked.ranks.shape[0], ranked.n_samples
    details: dict[str, Any] = {
        "n_runs": n_runs,
        "n_samples": n_samples,
        "n_failed": int(ranked.failed.sum()),
        "level": error,
        "skipped_quantities": ranked.skipped,
        "expected": f"no adjusted p-value at or below {error:g}",
    }
    if (failure := refused("coverage", ranked, error, details)) is not None:
        return failure
    curves = coverage_curves(ranked, levels)
    require(len(curves) > 0, "ranks of marginals or of log q", list(ranked.names), "rank the default quantities")
    names = list(curves)
    p_raw = np.array([gamma_p_value(float(gamma_statistic(c, z, n_runs)), z, n_runs) for z, c in curves.values()])
    adjusted = holm(p_raw)
    details["sets"] = {name: _set_details(*curves[name], n_runs, error, len(names)) for name in names}
    details |= {"names": names, "p_raw": p_raw, "p_holm": adjusted}
    worst = int(np.argmin(p_raw))
    curve = details["sets"][names[worst]]
    distance = (curve["empirical"] - curve["nominal"]) / np.sqrt(curve["nominal"] * (1 - curve["nominal"]))
    at = int(np.argmax(np.abs(distance)))
    passed = bool(adjusted.min() > error)
    gap = f"{names[worst]} sets of {curve['nominal'][at]:.1%} covered {curve['empirical'][at]:.1%} (adjusted p = {adjusted[worst]:.2g})"
    details["worst"] = gap
    details["do"] = "widen the posterior (it is overconfident)" if distance[at] < 0 else "narrow the posterior (it is underconfident)"
    deviation = max(float(np.abs(c["empirical"] - c["nominal"]).max()) for c in details["sets"].values())
    verdict = "no evidence of wrong coverage" if passed else f"wrong coverage: {gap},"
    summary = f"{verdict} at family-wise error {error:.0%} (N={n_runs}, L={n_samples}, m={len(names)}; largest deviation {deviation:.1%})"
    statistic = float(adjusted[worst])
    return GateResult("coverage", passed, statistic, error, statistic, summary, details)


def coverage_curves(ranked: RankPass, levels: Sequence[float]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For every set, its exact nominal levels and the number of runs whose truth it covers, by increasing level."""
    n_samples = ranked.n_samples
    curves = {}
    for name, ranks in zip(ranked.names, ranked.ranks.T, strict=True):
        if name.startswith(("x[", "direction[")):
            j = _attainable(levels, n_samples, central=True)
            inside = (ranks[:, None] >= j) & (ranks[:, None] <= n_samples - j)
            curves[f"central {name}"] = (1.0 - 2.0 * j / (n_samples + 1), inside.sum(axis=0))
        elif name == "log q":
            k = _attainable(levels, n_samples, central=False)
            curves["hpd"] = (k / (n_samples + 1), (n_samples - ranks[:, None] < k).sum(axis=0))
    return curves


def _set_details(z: np.ndarray, counts: np.ndarray, n_runs: int, error: float, n_sets: int) -> dict[str, Any]:
    """Empirical coverage with its Clopper–Pearson interval, and the simultaneous bands around the nominal one."""
    band, wide = ecdf_band(z, n_runs, error), ecdf_band(z, n_runs, error / n_sets)
    return {
        "nominal": z,
        "empirical": counts / n_runs,
        "pointwise": {
            "lower": np.where(counts > 0, stats.beta.ppf(0.5 * error, np.maximum(counts, 1), n_runs - counts + 1), 0.0),
            "upper": np.where(counts < n_runs, stats.beta.ppf(1 - 0.5 * error, counts + 1, np.maximum(n_runs - counts, 1)), 1.0),
        },
        "band": {"lower": band.lower / n_runs, "upper": band.upper / n_runs},
        "band_familywise": {"lower": wide.lower / n_runs, "upper": wide.upper / n_runs},
    }


def assert_coverage(result: GateResult) -> None:
    """Raise unless coverage passed.

    Raises:
        AssertionError: names the worst set, its coverage, the bound and what to do.

    Example:
        >>> assert_coverage(coverage(model, simulator, key=jax.random.key(0)))
    """
    assert_passed(result)
