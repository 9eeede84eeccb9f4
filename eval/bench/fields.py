"""Score fields:  python -m eval.bench fields RUN_DIR [--draws 64]

A posterior of 64 × 64 fields from satellite tracks, of the middle day or of all days, beside the exact one of the middle day of four stored
samples: error and spread of its draws, their continuous ranked probability score and coverage, and their spectrum beside the truth's. Of a
learned solver, also one inside a posterior, the errors of its analyses and of the parts of it that can answer alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from eval.reference import ROOT
from eval.solver import answers
from train.config import load_experiment, load_run, load_solver
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.fourdvarnet import FourDVarNet, FourDVarNetConfig
from vardax_flax.validation.ensemble import crps, rmse, spread_skill

STORED = "tests/data/gp2d_tracks.npz"
BANDS = (1, 2, 4, 6, 8, 12, 16, 32)  # waves across the square, from … to below …


class Fields(NamedTuple):
    """The stored samples: observations `(4, 15, 64, 64)`; truth, exact mean and exact standard deviation `(4, 64, 64)`."""

    batch: Batch
    truth: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def load_fields() -> Fields:
    """Read the stored samples."""
    with np.load(ROOT / STORED, allow_pickle=False) as data:
        shape = tuple(data["mask_shape"])
        mask = np.unpackbits(data["mask"])[: np.prod(shape)].reshape(shape).astype(np.float32)
        y = np.zeros(shape, np.float32)
        for values, seen, observed in zip(y, mask, data["obs"], strict=True):
            values[seen > 0] = observed[: int(seen.sum())]
        return Fields(Batch(y, mask), data["truth_center"], data["mean_center"], data["std_center"])


def band_power(x: np.ndarray) -> np.ndarray:
    """Variance in each band of wave numbers `(*batch, bands)` of fields `(*batch, n, n)`."""
    n = x.shape[-1]
    waves = np.fft.fftfreq(n, 1 / n)
    number = np.hypot(waves[:, None], waves[None, :])
    power = np.abs(np.fft.fft2(x)) ** 2 / n**4
    bands = [(number >= low) & (number < high) for low, high in zip(BANDS, BANDS[1:], strict=False)]
    return np.stack([power[..., band].sum(axis=-1) for band in bands], axis=-1)


def exact_crps(fields: Fields) -> np.ndarray:
    """CRPS of the exact posterior at every pixel, s (z (2 Φ(z) − 1) + 2 φ(z) − 1 / √π) with z = (x − m) / s (Gneiting & Raftery 2007)."""
    z = (fields.truth - fields.mean) / fields.std
    return fields.std * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))


def coverage_90(draws: np.ndarray, truth: np.ndarray) -> float:
    """Share of pixels within the central 90 % of draws `(n, *grid)`: between the k-th lowest and the k-th highest of the first 20 k − 1."""
    k = (len(draws) + 1) // 20
    if k == 0:
        return float("nan")
    ordered = np.sort(draws[: 20 * k - 1], axis=0)
    return float(((truth >= ordered[k - 1]) & (truth <= ordered[-k])).mean())


def scores(draws: np.ndarray, fields: Fields) -> dict[str, Any]:
    """Of draws `(4, n, 64, 64)`: RMSE of the mean (each sample; exact beside it), coverage, spread–skill ratio, CRPS, spectra.

    A band is resolved where the exact mean has more than half of the truth's variance right.
    """
    each = range(len(draws))
    truth = band_power(fields.truth).mean(axis=0)
    return {
        "rmse": [float(rmse(draws[i : i + 1], fields.truth[i : i + 1])) for i in each],
        "exact_rmse": _root_mean_square(fields.mean - fields.truth).tolist(),
        "coverage": [coverage_90(draws[i], fields.truth[i]) for i in each],
        "spread_skill": float(spread_skill(draws, fields.truth)),
        "crps": [float(crps(draws[i : i + 1], fields.truth[i : i + 1]).mean()) for i in each],
        "exact_crps": exact_crps(fields).mean(axis=(1, 2)).tolist(),
        "mean_to_exact": _root_mean_square(draws.mean(axis=1) - fields.mean).tolist(),
        "std_to_exact": np.sqrt(draws.var(axis=1, ddof=1).mean(axis=(1, 2)) / np.square(fields.std).mean(axis=(1, 2))).tolist(),
        "spectrum": (band_power(draws).mean(axis=(0, 1)) / truth).tolist(),
        "resolved": (band_power(fields.mean - fields.truth).mean(axis=0) < 0.5 * truth).tolist(),
    }


def show_fields(arguments: list[str]) -> None:
    """Draw from a trained posterior and print its scores."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench fields", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--draws", type=int, default=64)
    options = parser.parse_args(arguments)
    require(options.draws >= 2, "at least 2 draws", options.draws, "pass more")
    fields, experiment = load_fields(), load_experiment(options.run_dir)
    expected, got = fields.batch.input.shape[1:], experiment.simulator.spec.input.shape
    require(got == expected, f"a run on observations of shape {expected}", got, "pass a run of the presets fields or gp2d")
    if isinstance(experiment.posterior, FourDVarNetConfig):
        show_analyses(load_solver(options.run_dir).solver, fields)
        return
    trained = load_run(options.run_dir)
    # one sample at a time, in parts: the memory of a network on so many fields
    parts = [
        np.concatenate([np.asarray(trained.posterior.sample(one, jax.random.key(part), 16)) for part in range(-(-options.draws // 16))])
        for one in (Batch(fields.batch.input[i], fields.batch.mask[i]) for i in range(len(fields.truth)))
    ]
    print(table(scores(middle_day(np.stack(parts)[:, : options.draws]), fields), options.draws))
    solver = getattr(getattr(trained.posterior, "encoder", None), "solver", None)
    if solver is not None:
        show_analyses(solver, fields)


def middle_day(x: np.ndarray) -> np.ndarray:
    """Of windows `(*batch, days, n, n)` with as many leading axes as `(4, draws)`, or what has no days as it is."""
    return x if x.ndim == 4 else x[:, :, x.shape[2] // 2]


def show_analyses(solver: FourDVarNet, fields: Fields) -> None:
    """Print the errors of a solver and its parts."""
    print(analysis_table({name: np.asarray(answer(fields.batch)) for name, answer in answers(solver).items()}, fields))


def analysis_table(analyses: dict[str, np.ndarray], fields: Fields) -> str:
    """The errors of analyses `(4, 15, 64, 64)` on the middle day, in Markdown."""
    rows = {name: x[:, x.shape[1] // 2] for name, x in analyses.items()} | {"exact": fields.mean}
    each = {name: _root_mean_square(x - fields.truth) for name, x in rows.items()}
    exact = each["exact"].mean()
    lines = ["\n| 4 fields | RMSE | / exact | each sample |", "|---|---|---|---|"]
    lines += [f"| {name} | {error.mean():.4f} | {error.mean() / exact:.3f} | {_each(error)} |" for name, error in each.items()]
    return "\n".join(lines)


def _root_mean_square(x: np.ndarray) -> np.ndarray:
    """Of each field `(*batch, n, n)`."""
    return np.sqrt(np.square(x).mean(axis=(-2, -1)))


def _each(values: Any) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def table(row: dict[str, Any], draws: int) -> str:
    """The scores in Markdown."""
    error, exact = np.mean(row["rmse"]), np.mean(row["exact_rmse"])
    lines = [f"\n| 4 fields, {draws} draws | posterior | exact | each sample |", "|---|---|---|---|"]
    lines += [
        f"| RMSE of the mean | {error:.4f} ({error / exact:.3f} × exact) | {exact:.4f} | {_each(row['rmse'])} |",
        f"| CRPS | {np.mean(row['crps']):.4f} ({np.mean(row['crps']) / np.mean(row['exact_crps']):.3f} × exact) "
        f"| {np.mean(row['exact_crps']):.4f} | {_each(row['crps'])} |",
        f"| pixels within 90 % | {np.mean(row['coverage']):.3f} | 0.9 | {_each(row['coverage'])} |",
        f"| spread / skill | {row['spread_skill']:.3f} | 1 | |",
        f"| RMS distance of the mean from the exact mean | {np.mean(row['mean_to_exact']):.4f} | 0 | {_each(row['mean_to_exact'])} |",
        f"| spread / exact spread | {np.mean(row['std_to_exact']):.3f} | 1 | {_each(row['std_to_exact'])} |",
        "\n| waves across the square | " + " | ".join(f"{a}–{b}" for a, b in zip(BANDS, BANDS[1:], strict=False)) + " |",
        "|---" * len(BANDS) + "|",
        "| variance of a draw / of the truth | " + " | ".join(f"{value:.3f}" for value in row["spectrum"]) + " |",
        "| resolved by the exact mean | " + " | ".join("yes" if value else "no" for value in row["resolved"]) + " |",
    ]
    return "\n".join(lines)
