"""What calibration costs: runs in one jitted pass, beside an epoch of training, and beside a Python loop over the same jitted sampler."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.bench.pipeline import bare_step
from train.presets import load_preset
from vardax_flax.posteriors import Amortized
from vardax_flax.validation import rank_pass
from vardax_flax.validation.quantities import default_quantities, make_pilot

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
    """Milliseconds of a run in the pass, and in a loop whose runs simulate, sample and rank the same quantities by compiled calls."""
    experiment = load_preset(preset)
    posterior, simulator = experiment.build(), experiment.simulator
    assert isinstance(posterior, Amortized)
    simulate = jax.jit(simulator.sample)
    pilot = make_pilot(simulator, jax.random.key(0))
    others = default_quantities(None, simulator, pilot, math.prod(posterior.state_shape)).values()
    values = jax.jit(lambda x, element: jnp.stack([jax.vmap(lambda x, f=f: f(x, element))(x) for f in others]))

    def one(key: jax.Array) -> np.ndarray:
        draw, sample = jax.random.split(key)
        element = simulate(draw)
        seen = element._replace(target=None)
        x = jnp.concatenate([element.target[None], posterior.sample(seen, sample, n_samples)])
        table = np.concatenate([values(x, seen), posterior.log_prob(x, seen)[None]])
        return (table[:, 1:] < table[:, :1]).sum(axis=1)

    def loop(repetition: int, runs: int = 100) -> float:
        keys = list(jax.random.split(jax.random.key(repetition), runs))
        began = time.perf_counter()
        for key in keys:
            one(key)
        return (time.perf_counter() - began) / runs

    def together(repetition: int, passes: int = 5) -> float:  # several in a row, as the runs of the loop are
        keys = list(jax.random.split(jax.random.key(repetition), passes))
        began = time.perf_counter()
        for key in keys:
            rank_pass(posterior, simulator, key=key, n_runs=n_runs, n_samples=n_samples)
        return (time.perf_counter() - began) / passes / n_runs

    loop(0), together(0)  # compile
    pairs = np.array([(loop(repetition), together(repetition)) for repetition in range(1, 6)])
    return {"loop": 1e3 * np.median(pairs[:, 0]), "pass": 1e3 * np.median(pairs[:, 1]), "ratio": np.median(pairs[:, 0] / pairs[:, 1])}
