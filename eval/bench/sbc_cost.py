"""What calibration costs: runs in one jitted pass, beside an epoch of training, and beside a Python loop over the same jitted sampler."""

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


def beside_a_loop(preset: str, n_runs: int = 1000, n_samples: int = 99) -> dict[str, float]:
    """Milliseconds of a run in the pass, and in a loop that simulates, samples and ranks the state, each by a compiled call."""
    experiment = load_preset(preset)
    posterior, simulator = experiment.build(), experiment.simulator
    simulate = jax.jit(simulator.sample)

    def one(key: jax.Array) -> np.ndarray:
        draw, sample = jax.random.split(key)
        element = simulate(draw)
        draws = posterior.sample(element._replace(target=None), sample, n_samples)
        return (np.asarray(draws) < np.asarray(element.target)).sum(axis=0)

    def loop(repetition: int, runs: int = 100) -> float:
        keys = list(jax.random.split(jax.random.key(repetition), runs))
        began = time.perf_counter()
        for key in keys:
            one(key)
        return (time.perf_counter() - began) / runs

    def together(repetition: int) -> float:
        began = time.perf_counter()
        rank_pass(posterior, simulator, key=jax.random.key(repetition), n_runs=n_runs, n_samples=n_samples)
        return (time.perf_counter() - began) / n_runs

    loop(0), together(0)  # compile
    pairs = np.array([(loop(repetition), together(repetition)) for repetition in range(1, 6)])
    return {"loop": 1e3 * np.median(pairs[:, 0]), "pass": 1e3 * np.median(pairs[:, 1]), "ratio": np.median(pairs[:, 0] / pairs[:, 1])}
