"""Tests of accuracy with reference points that depend on the observation: expected coverage of balls around them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Simulator
from vardax_flax.validation.rank_pass import RankPass, rank_pass, refused
from vardax_flax.validation.ranks import ecdf_band, gamma_p_value, gamma_statistic, rank_counts, rank_grid, rank_shape
from vardax_flax.validation.result import GateResult, assert_passed


def tarp(model: Any, simulator: Simulator, *, key: jax.Array, n_runs: int = 1000, n_samples: int = 99, level: float = 0.05) -> GateResult:
    """Test that balls around a reference point x̂(y) hold the truth as often as they hold draws of q(x | y).

    In each of N runs the credibility of the ball around x̂(y) through the truth is r / (L + 1), with r the number of draws inside; under the
    exact posterior it is uniform. A reference that does not depend on y lets the prior pass; here it is a regression of x on y, fitted to
    other simulations (`quantities.py`; Lemos et al. 2023, *Sampling-based accuracy testing of posterior estimators*).

    Args:
        model: a `Posterior`.
        simulator: of the joint distribution.
        key: random key.
        n_runs: N.
        n_samples: L.
        level: rate of false alarms.

    Raises:
        ConfigError: sizes too small, a simulator without target, or draws of the wrong shape.

    Example:
        >>> assert_tarp(tarp(model, simulator, key=jax.random.key(0)))
    """
    return tarp_from_ranks(rank_pass(model, simulator, key=key, n_runs=n_runs, n_samples=n_samples), level=level)


def tarp_from_ranks(ranked: RankPass, *, level: float = 0.05) -> GateResult:
    """The verdict on ranks already computed, those of the quantity "tarp".

    Args:
        ranked: from `rank_pass`, with the default quantities.
        level: rate of false alarms.

    Returns:
        `statistic` is the p-value, `bound` the level; `details` holds credibilities, expected coverage and its simultaneous band.

    Raises:
        ConfigError: a `level` outside (0, 1), or ranks without "tarp".

    Example:
        >>> result = tarp_from_ranks(rank_pass(model, simulator, key=key))
    """
    require(0 < level < 1, "0 < level < 1", level, "pass such a level")
    require("tarp" in ranked.names, "ranks of the quantity 'tarp'", list(ranked.names), "rank the default quantities")
    n_samples, n_runs = ranked.n_samples, len(ranked.failed)
    sizes: dict[str, Any] = {"n_runs": n_runs, "n_samples": n_samples, "n_failed": int(ranked.failed.sum()), "level": level}
    if (failure := refused("tarp", ranked, level, sizes)) is not None:
        return failure
    ranks = ranked.ranks[:, [ranked.names.index("tarp")]]
    grid = rank_grid(n_runs, n_samples)
    z = grid / (n_samples + 1)
    counts = rank_counts(ranks, grid)[0]
    p_value = gamma_p_value(float(gamma_statistic(counts, z, n_runs)), z, n_runs)
    band = ecdf_band(z, n_runs, level)
    covered, at = counts / n_runs, int(np.argmax(np.abs(counts / n_runs - z) / np.sqrt(z * (1 - z))))
    passed, shape = p_value > level, rank_shape(ranks[:, 0], n_samples)
    shape = {"draws too low": "draws too near the reference", "draws too high": "draws too far from the reference"}.get(shape, shape)
    worst = f"balls of credibility {z[at]:.0%} covered {covered[at]:.1%} (p = {p_value:.2g}), {shape}"
    details = sizes | {
        "credibility": z, "covered": covered, "band": {"lower": band.lower / n_runs, "upper": band.upper / n_runs}, "ranks": ranks[:, 0],
        "expected": f"expected coverage inside its band at {level:.0%}", "worst": worst,
        "do": "train longer, on more simulations or with a richer head; check that the posterior uses the observation",
    }  # fmt: skip
    head = "expected coverage inside its band" if passed else f"expected coverage outside its band: {worst},"
    summary = f"{head} at a rate of false alarms of {level:.0%} (N={n_runs}, L={n_samples})"
    return GateResult("tarp", passed, p_value, level, p_value, summary, details)


def assert_tarp(result: GateResult) -> None:
    """Raise unless the expected coverage of balls is right.

    Raises:
        AssertionError: names the worst credibility, its coverage, the bound and what to do.

    Example:
        >>> assert_tarp(tarp(model, simulator, key=jax.random.key(0)))
    """
    assert_passed(result)
