"""A full set of results, as a run of the gates leaves them: NumPy arrays with planted defects of known kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from vardax_flax.report import write_report


def _sbc(rng: np.random.Generator) -> dict[str, Any]:
    n_runs, n_samples = 1000, 99
    ranks = rng.integers(0, n_samples + 1, size=(n_runs, 6))
    ranks[:, 1] = np.floor(rng.beta(0.75, 0.75, n_runs) * (n_samples + 1)).astype(int)  # a posterior that is too narrow
    ranks[:, 4] = np.floor(rng.beta(1.0, 0.8, n_runs) * (n_samples + 1)).astype(int)  # the truth above the draws: too low
    z = np.arange(1, 100) / 100
    names = ["x[0]", "x[1]", "x[2]", "log q", "log p(y | x)", "x[0] · x[1]"]
    details = {"names": names, "ranks": ranks, "n_runs": n_runs, "n_samples": n_samples, "z": z, "level": 0.05}
    details |= {"band": _band(n_runs, z, 4e-4), "band_familywise": _band(n_runs, z, 7e-5), "p_holm": [0.61, 2e-4, 1.0, 0.44, 3e-3, 0.9]}
    details |= {"contraction_summary": {"median": 0.93, "p05": 0.81, "p95": 0.98}, "skipped_quantities": {"log p(x)": "no density"}}
    shapes = ["uneven ranks", "draws too narrow", "uneven ranks", "uneven ranks", "draws too low", "uneven ranks"]
    details |= {"worst": "p = 0.0002 for 'x[1]'", "shapes": shapes}
    gate = {"name": "sbc", "passed": False, "statistic": 2e-4, "bound": 0.05, "p_value": 2e-4, "details": details}
    return gate | {"summary": "miscalibrated: p = 0.0002 for 'x[1]', at family-wise error 5% (N=1000, L=99, m=6)"}


def _band(n_runs: int, z: np.ndarray, tail: float) -> dict[str, Any]:
    return {"lower": binom.ppf(tail, n_runs, z) / n_runs, "upper": binom.isf(tail, n_runs, z) / n_runs}


def _coverage(rng: np.random.Generator) -> dict[str, Any]:
    levels = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    n_runs, names = 2000, ["central x[0]", "central x[1]", "central x[2]", "hpd"]
    bands = {"band": _band(n_runs, levels, 2e-3), "band_familywise": _band(n_runs, levels, 5e-4)}
    sets = {name: {"nominal": levels, "empirical": rng.binomial(n_runs, levels) / n_runs, **bands} for name in names}
    details = {"names": names, "sets": sets, "n_runs": n_runs, "n_samples": 999, "level": 0.05, "p_holm": [0.9, 0.3, 1.0, 0.21]}
    summary = "no evidence of wrong coverage at family-wise error 5% (N=2000, L=999, m=4)"
    return {"name": "coverage", "passed": True, "statistic": 0.21, "bound": 0.05, "p_value": 0.21, "summary": summary, "details": details}


def _agreement(rng: np.random.Generator) -> dict[str, Any]:
    z = np.abs(rng.normal(0, 0.25, (256, 3)))
    z[7, 2] = np.nan
    details = {"z": z, "spread_ratio": np.exp(rng.normal(0.03, 0.15, (256, 3))), "names": ["X", "Y", "Z"]}
    gate = {"name": "posterior_agreement", "passed": True, "statistic": 0.001, "bound": 0.05, "p_value": None, "details": details}
    return gate | {"summary": "agrees with the oracle; share beyond 1σ 0.1%"}


def _trajectory(rng: np.random.Generator) -> dict[str, Any]:
    time = np.linspace(0, 1, 101)
    truth = np.stack([8 * np.sin(5 * time), 9 * np.sin(5 * time + 0.4), 24 + 6 * np.cos(7 * time)], axis=1)
    mean = truth + rng.normal(0, 0.3, 3)
    sd = (0.35 + 0.4 * time)[:, None] * np.ones(3)
    obs_time = time[10::10]
    obs = truth[10::10] + rng.normal(0, np.sqrt(2), (10, 3))
    obs[rng.random(obs.shape) < 0.3] = np.nan
    return {
        "title": "Window 3: Lorenz-63",
        "kind": "trajectory",
        "time": time,
        "names": ["X", "Y", "Z"],
        "truth": truth,
        "posterior_mean": mean,
        "posterior_low": mean - 1.64 * sd,
        "posterior_high": mean + 1.64 * sd,
        "prior_low": truth - 3.3,
        "prior_high": truth + 3.3,
        "obs_time": obs_time,
        "obs": obs,
        "time_label": "time (model units)",
    }


def _scatter(rng: np.random.Generator) -> dict[str, Any]:
    def moons(n: int) -> np.ndarray:
        angle, sign = rng.uniform(-np.pi / 2, np.pi / 2, n), rng.choice([-1.0, 1.0], n)
        radius = rng.normal(0.1, 0.01, n)
        return np.stack([sign * (0.25 + radius * np.cos(angle)), radius * np.sin(angle) + 0.05 * sign], axis=1)

    clouds = {"draws": moons(4000), "reference": moons(500), "truth": [0.34, 0.06]}
    return {"title": "Two moons", "kind": "scatter", "names": ["θ₁", "θ₂"], **clouds}


def _training(rng: np.random.Generator) -> dict[str, Any]:
    steps = np.arange(0, 20000, 10)
    loss = -2.1 + 9 * np.exp(-steps / 900) + rng.normal(0, 0.15, steps.size)
    held = np.arange(0, 20001, 1000)
    validation = -2.0 + 9 * np.exp(-held / 900) + rng.normal(0, 0.02, held.size)
    series = {"loss": np.stack([steps, loss], axis=1), "validation": np.stack([held, validation], axis=1)}
    return {"steps": 20000, **series, "best_step": 18000, "steps_per_second": 612.4}


def _results() -> dict[str, Any]:
    """Three decided gates of which one fails, a skipped and an unbounded one, and everything a report can show."""
    rng = np.random.default_rng(0)
    config = {"head": {"kind": "flow", "layers": 6, "hidden": [128, 128]}, "rate": 3e-4}
    skipped = {"name": "psis", "passed": None, "statistic": None, "summary": "skipped", "details": {"skipped": "the prior has no density"}}
    metric = {"name": "c2st", "passed": None, "statistic": 0.534, "bound": None, "p_value": None, "summary": "oracle against oracle: 0.508"}
    counts = rng.multinomial(20000, np.full(51, 1 / 51))
    ensemble = {"name": "ensemble", "passed": None, "statistic": 0.31, "summary": "CRPS 0.31", "details": {"rank_histogram": counts}}
    rows = [["flow", np.float32(0.5625), 1.31], ["4DVar (oracle)", 0.561, 9.7e4], ["prior", 1.998, None]]
    table = {"title": "Error against the truth", "columns": ["method", "RMSE", "ms"], "rows": rows, "note": "256 windows."}
    return {
        "title": "Lorenz-63, flow head",
        "run": {"preset": "lorenz63", "config": config, "command": "python -m train lorenz63", "seed": 0, "parameters": 412345},
        "versions": {"jax": "0.10.2", "flax": "0.12.8", "vardax_flax": "0.1.0"},
        "timings": [{"what": "training", "seconds": 32.7, "note": "one CPU"}, {"what": "gates", "seconds": 14.02}],
        "gates": [_sbc(rng), _coverage(rng), _agreement(rng), skipped, metric, ensemble],
        "training": _training(rng),
        "tables": [table],
        "windows": [_trajectory(rng), _scatter(rng)],
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """A fresh copy for tests that change it."""
    return _results()


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the full report, written once for the tests that only read them."""
    page = write_report(_results(), tmp_path_factory.mktemp("report"))
    return {name: (page.parent / name).read_bytes() for name in ("report.json", "report.md", "report.html")}
