"""Simulation-based calibration: are the draws of q(x | y) exchangeable with the truth, for quantities fixed before looking?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Simulator
from vardax_flax.validation.quantities import Quantity
from vardax_flax.validation.rank_pass import RankPass, rank_pass, refused
from vardax_flax.validation.ranks import (
    chi2_uniform,
    detectable,
    ecdf_band,
    gamma_p_value,
    gamma_statistic,
    holm,
    rank_counts,
    rank_grid,
    rank_shape,
)
from vardax_flax.validation.result import GateResult, assert_passed

GAMMA_SHARE = 0.8  # of the error rate; χ² takes the rest, so that their sum is the stated one


def simulation_based_calibration(
    model: Any,
    simulator: Simulator,
    *,
    key: jax.Array,
    n_runs: int = 1000,
    n_samples: int = 99,
    level: float = 0.05,
    batch_size: int | None = None,
    quantities: Mapping[str, Quantity] | None = None,
) -> GateResult:
    """Test that ranks of the truth among posterior draws are uniform, for marginals and joint quantities.

    For each quantity p = min(1, p_γ / 0.8, p_χ² / 0.2) with the exact null of γ and χ² with at least ten expected counts a bin; Holm over
    quantities. The gate fails if any adjusted p ≤ level, or if any run had a non-finite draw (Talts et al. 2018; Säilynoja et al. 2022;
    Modrák et al. 2023).

    Args:
        model: a `Posterior`.
        simulator: of the joint distribution the model was trained on, or another one to test for misspecification.
        key: random key.
        n_runs: N independent runs.
        n_samples: L draws a run; L + 1 a multiple of 100 keeps bins equal.
        level: family-wise error.
        batch_size: runs computed at once; does not change the result.
        quantities: functions f(x, element) by name; None for the default family (`vardax_flax.validation.quantities`).

    Returns:
        `statistic` is the smallest adjusted p-value, `bound` the level; `details` holds ranks, names, ECDF and bands.

    Raises:
        ConfigError: sizes too small, a simulator without target, or draws of the wrong shape.

    Example:
        >>> result = simulation_based_calibration(model, simulator, key=jax.random.key(0))
        >>> assert_sbc(result)
    """
    ranked = rank_pass(model, simulator, key=key, n_runs=n_runs, n_samples=n_samples, batch_size=batch_size, quantities=quantities)
    return sbc_from_ranks(ranked, level=level)


def sbc_from_ranks(ranked: RankPass, *, level: float = 0.05) -> GateResult:
    """The verdict of simulation-based calibration on ranks already computed.

    Args:
        ranked: from `rank_pass`.
        level: family-wise error.

    Raises:
        ConfigError: a `level` outside (0, 1).

    Example:
        >>> result = sbc_from_ranks(rank_pass(model, simulator, key=key))
    """
    require(0 < level < 1, "0 < level < 1", level, "pass such a level")
    n_runs, n_names, n_samples = ranked.ranks.shape[0], len(ranked.names), ranked.n_samples
    ranks = ranked.ranks[~ranked.failed]
    details: dict[str, Any] = {
        "names": list(ranked.names),
        "ranks": ranked.ranks,
        "n_runs": n_runs,
        "n_samples": n_samples,
        "n_failed": int(ranked.failed.sum()),
        "level": level,
        "skipped_quantities": ranked.skipped,
        "expected": f"no adjusted p-value at or below {level:g}",
        **_spread_summary(ranked),
    }
    if (failure := refused("sbc", ranked, level, details)) is not None:
        return failure
    tests = _tests(ranks, n_samples)
    band, wide = (ecdf_band(tests["z"], n_runs, error) for error in (level, GAMMA_SHARE * level / n_names))
    size = detectable(wide)
    worst = int(np.argmin(tests["p_raw"]))
    p_value = float(tests["p_holm"][worst])
    passed = p_value > level
    shapes = [rank_shape(ranks[:, i], n_samples) for i in range(n_names)]
    details |= tests | {
        "band": {"lower": band.lower / n_runs, "upper": band.upper / n_runs},
        "band_familywise": {"lower": wide.lower / n_runs, "upper": wide.upper / n_runs},
        "detectable": size,
        "shapes": shapes,
        "worst": f"p = {p_value:.2g} for {ranked.names[worst]!r}, {shapes[worst]}",
        "do": "train longer, on more simulations or with a richer head, then look at the rank histogram of that quantity",
    }
    verdict = "no evidence of miscalibration" if passed else f"miscalibrated: {details['worst']},"
    smallest = f"shift of {size['shift']:.2f} sd, sd × {size['narrow']:.2f} or × {size['wide']:.2f}"
    sizes = f"N={n_runs}, L={n_samples}, m={n_names}; smallest defect detectable with power 0.8: {smallest}"
    return GateResult("sbc", passed, p_value, level, p_value, f"{verdict} at family-wise error {level:.0%} ({sizes})", details)


def _tests(ranks: np.ndarray, n_samples: int) -> dict[str, np.ndarray]:
    """γ, χ² and their p-values for every quantity, joined and adjusted."""
    n_runs = ranks.shape[0]
    grid = rank_grid(n_runs, n_samples)
    z, counts = grid / (n_samples + 1), rank_counts(ranks, grid)
    gamma = gamma_statistic(counts, z, n_runs)
    p_gamma = np.array([gamma_p_value(float(g), z, n_runs) for g in gamma])
    _, p_chi2 = chi2_uniform(ranks, n_samples)
    p_raw = np.minimum(1.0, np.minimum(p_gamma / GAMMA_SHARE, p_chi2 / (1.0 - GAMMA_SHARE)))
    return {
        "z": z,
        "ecdf": counts / n_runs,
        "gamma": gamma,
        "p_gamma": p_gamma,
        "p_chi2": p_chi2,
        "p_raw": p_raw,
        "p_holm": holm(p_raw),
    }


def _spread_summary(ranked: RankPass) -> dict[str, Any]:
    """z-score and contraction of the followed dimensions, with their median and 5–95 % range over runs and dimensions."""
    out: dict[str, Any] = {"dimensions": ranked.dimensions, "zscore": ranked.zscore, "contraction": ranked.contraction}
    for name in ("zscore", "contraction"):
        values = out[name][~ranked.failed]
        low, median, high = np.percentile(values, [5, 50, 95]) if values.size else (math.nan,) * 3
        out[f"{name}_summary"] = {"median": float(median), "p05": float(low), "p95": float(high)}
    return out


def assert_sbc(result: GateResult) -> None:
    """Raise unless simulation-based calibration passed.

    Raises:
        AssertionError: names the worst quantity, its adjusted p-value, the bound and what to do.

    Example:
        >>> assert_sbc(simulation_based_calibration(model, simulator, key=jax.random.key(0)))
    """
    assert_passed(result)
