"""What a report shows beside the gates: tables of scores, and windows to look at."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eval.events import gates_key, held_out
from eval.reference import Reference
from train.config import Experiment
from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Conjugate, Head
from vardax_flax.posteriors import Amortized
from vardax_flax.simulators import BackgroundWindow, Window
from vardax_flax.training import read_metrics
from vardax_flax.validation import GateResult, crps, spread_skill

PACKAGES = ("jax", "flax", "optax", "distrax", "orbax-checkpoint", "grain", "numpy")
SHOWN_WINDOWS = 3


def reference_table(posterior: Amortized, reference: Reference, key: jax.Array) -> dict[str, Any]:
    """Scores of the amortized and of the reference posterior on the same observations."""
    draws = np.asarray(posterior.sample(reference.batch, key, 1000), np.float64)
    mean, sd = draws.mean(axis=1), draws.std(axis=1, ddof=1)
    sd_reference = np.sqrt(np.diagonal(reference.cov, axis1=1, axis2=2))
    cov = np.stack([np.cov(event, rowvar=False) for event in draws])
    size = np.linalg.norm(reference.cov, axis=(1, 2))
    z = np.abs(mean - reference.mean) / sd_reference
    few = np.asarray(reference.draws[:, :1000], np.float64)

    def error(m: np.ndarray) -> float:
        return float(np.sqrt(np.mean((m - reference.truth) ** 2)))

    rows = [
        ["RMSE of the posterior mean", error(mean), error(reference.mean)],
        ["ratio of the two", error(mean) / error(reference.mean), 1.0],
        ["CRPS (fair), mean", float(crps(draws, reference.truth).mean()), float(crps(few, reference.truth).mean())],
        ["RMS z-score of the truth", _rms((reference.truth - mean) / sd), _rms((reference.truth - reference.mean) / sd_reference)],
        ["spread–skill ratio", float(np.mean(spread_skill(draws, reference.truth))), float(np.mean(spread_skill(few, reference.truth)))],
        ["|mean − reference mean| / reference sd, median", float(np.median(z)), 0.0],
        ["the same, 90 % quantile", float(np.quantile(z, 0.9)), 0.0],
        ["sd / reference sd, median", float(np.median(sd / sd_reference)), 1.0],
        ["‖cov − reference cov‖ / ‖reference cov‖, median", float(np.median(np.linalg.norm(cov - reference.cov, axis=(1, 2)) / size)), 0.0],
    ]
    title = f"{len(reference.truth)} independent observations ({reference.name})"
    note = "The reference posteriors were computed outside this project; an exact posterior has a z-score of 1."
    return {"title": title, "columns": ["score", "amortized", "reference"], "rows": rows, "note": note}


def _rms(z: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(z))))


def coverage_table(result: GateResult) -> dict[str, Any] | None:
    """Empirical coverage at a few nominal levels."""
    sets = result.details.get("sets")
    if not sets:
        return None
    rows = []
    for name, one in sets.items():
        nominal, empirical = np.asarray(one["nominal"]), np.asarray(one["empirical"])
        rows.append([name, *(float(empirical[np.argmin(np.abs(nominal - level))]) for level in (0.5, 0.8, 0.9))])
    return {"title": "Coverage on fresh simulations", "columns": ["set", "50 %", "80 %", "90 %"], "rows": rows, "note": None}


def windows(experiment: Experiment, posterior: Amortized, reference: Reference | None) -> list[dict[str, Any]]:
    """A few answers to look at; none from a head without draws."""
    if not isinstance(posterior.head, Head):
        return []
    key = gates_key(experiment.gates, 8)
    simulator = experiment.simulator
    batch = held_out(simulator, experiment.gates, SHOWN_WINDOWS)
    if reference is not None:
        batch = jax.tree.map(lambda leaf: leaf[:SHOWN_WINDOWS], reference.batch._replace(target=reference.truth))
    shown = range(batch.input.shape[0])
    draws = np.asarray(posterior.sample(batch._replace(target=None), key, 500))
    if isinstance(simulator, Window):
        return [_trajectory(simulator, jax.tree.map(lambda leaf, i=i: leaf[i], batch), draws[i], i) for i in shown]
    flat = draws.reshape(*draws.shape[:2], -1)
    if flat.shape[-1] < 2:
        return []
    compare = None if reference is None else np.asarray(reference.draws)
    if compare is None and isinstance(simulator, Conjugate):
        mean, cov = (np.asarray(a, np.float64) for a in jax.vmap(simulator.posterior)(batch))
        noise = np.random.default_rng(0).standard_normal((len(shown), 500, mean.shape[-1]))
        compare = mean[:, None] + np.einsum("eij,enj->eni", np.linalg.cholesky(cov), noise)
    truth = np.asarray(batch.target).reshape(len(shown), -1)
    return [
        {
            "title": f"Observation {i + 1}: draws of the first two components",
            "kind": "scatter",
            "names": ["x1", "x2"],
            "draws": flat[i, :, :2],
            "reference": None if compare is None else compare[i, :500, :2],
            "truth": truth[i, :2],
        }
        for i in shown
    ]


def _trajectory(simulator: Window, element: Batch, draws: np.ndarray, index: int) -> dict[str, Any]:
    """Prior and posterior draws carried through the window by the model, beside truth and observations."""
    run = jax.jit(jax.vmap(simulator.trajectory))
    states = np.asarray(run(draws))
    variables = list(range(min(3, states.shape[-1])))
    low, high = np.quantile(states, [0.05, 0.95], axis=0)
    every = simulator.observe_every_step
    observed = np.where(np.asarray(element.mask) == 1, np.asarray(element.input, np.float64), np.nan)
    obs = np.full((observed.shape[0], states.shape[-1]), np.nan)
    obs[:, :: simulator.observe_every_site] = observed
    window = {
        "title": f"Window {index + 1}: posterior carried through the window",
        "kind": "trajectory",
        "time": simulator.dt * np.arange(states.shape[1]),
        "names": [f"x{v + 1}" for v in variables],
        "posterior_mean": states.mean(axis=0)[:, variables],
        "posterior_low": low[:, variables],
        "posterior_high": high[:, variables],
        "truth": np.asarray(run(np.asarray(element.target, np.float32)[None]))[0][:, variables],
        "obs_time": simulator.dt * every * np.arange(1, obs.shape[0] + 1),
        "obs": obs[:, variables],
    }
    if isinstance(simulator, BackgroundWindow):
        noise = np.random.default_rng(0).standard_normal(draws.shape).astype(np.float32)
        prior = np.asarray(run(np.asarray(element.background) + simulator.background_std * noise))
        window["prior_low"], window["prior_high"] = np.quantile(prior, [0.05, 0.95], axis=0)[:, :, variables]
    return window


def training_record(run_dir: Path, best_step: int) -> dict[str, Any] | None:
    """The loss curves of a run."""
    lines = read_metrics(run_dir)
    if not lines:
        return None
    return {
        "steps": lines[-1]["step"],
        "loss": [[line["step"], line["loss"]] for line in lines],
        "validation": [[line["step"], line["held_out"]] for line in lines],
        "best_step": best_step,
        "steps_per_second": float(np.median([line["steps_per_second"] for line in lines])),
    }


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    found = {"python": platform.python_version(), "vardax_flax": importlib.metadata.version("vardax-flax")}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}
