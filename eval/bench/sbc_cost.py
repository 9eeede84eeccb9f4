"""What calibration costs: 1000 runs × 1000 draws of a flow in one jitted pass, beside one epoch of its training."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from eval.bench.pipeline import bare_step
from train.presets import load_preset
from vardax_flax.validation import rank_pass

EPOCH = 10_000  # simulations


def sbc_cost(preset: str = "two_moons", n_runs: int = 1000, n_samples: int = 999) -> dict[str, Any]:
    """Seconds of the pass (first call, then median of three), and of one epoch of 10 000 simulations."""
    experiment = load_preset(preset)
    posterior = experiment.build()
    times = []
    for repetition in range(4):
        began = time.perf_counter()
        rank_pass(posterior, experiment.simulator, key=jax.random.key(repetition), n_runs=n_runs, n_samples=n_samples)
        times.append(time.perf_counter() - began)
    rate = bare_step(preset, simulate=True)
    epoch = EPOCH / experiment.batch_size / np.median([rate(100) for _ in range(3)])
    return {"first call": times[0], "warm": float(np.median(times[1:])), "epoch": float(epoch)}
