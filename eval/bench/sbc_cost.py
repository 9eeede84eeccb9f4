"""What calibration costs: runs in one jitted pass, beside an epoch of training, and beside Python loops over the same jitted sampler."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.bench.pipeline import bare_step
from train.presets import load_preset
from vardax_flax.core.batch import Batch
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
    """Milliseconds of a run in the pass, and in loops whose runs simulate, sample and rank the same quantities.

    In "plain" only the sampler and log q are compiled, in "loop" all that is called.
    """
    experiment = load_preset(preset)
    posterior, simulator = experiment.build(), experiment.simulator
    assert isinstance(posterior, Amortized)
    pilot = make_pilot(simulator, jax.random.key(0))
    others = default_quantities(None, simulator, pilot, math.prod(posterior.state_shape)).values()

    def values(x: jax.Array, element: Batch) -> jax.Array:
        return jnp.stack([jax.vmap(lambda x, f=f: f(x, element))(x) for f in others])

    def one(key: jax.Array, simulate: Any, values: Any) -> np.ndarray:
        draw, sample = jax.random.split(key)
        element = simulate(draw)
        seen = element._replace(target=None)
        x = jnp.concatenate([element.target[None], posterior.sample(seen, sample, n_samples)])
        table = np.concatenate([values(x, seen), posterior.log_prob(x, seen)[None]])
        return (table[:, 1:] < table[:, :1]).sum(axis=1)

    compiled = jax.jit(simulator.sample), jax.jit(values)

    def loop(repetition: int, runs: int, *parts: Any) -> float:
        keys = list(jax.random.split(jax.random.key(repetition), runs))
        began = time.perf_counter()
        for key in keys:
            one(key, *parts)
        return (time.perf_counter() - began) / runs

    def together(repetition: int, passes: int = 5) -> float:  # several in a row, as the runs of the loop are
        keys = list(jax.random.split(jax.random.key(repetition), passes))
        began = time.perf_counter()
        for key in keys:
            rank_pass(posterior, simulator, key=key, n_runs=n_runs, n_samples=n_samples)
        return (time.perf_counter() - began) / passes / n_runs

    def turn(repetition: int) -> tuple[float, float, float]:
        return loop(repetition, 10, simulator.sample, values), loop(repetition, 100, *compiled), together(repetition)

    turn(0)  # compiles
    times = np.array([turn(repetition) for repetition in range(1, 6)])
    plain, compiled_loop, whole = 1e3 * np.median(times, axis=0)
    ratios = np.median(times[:, :2] / times[:, 2:], axis=0)
    return {"plain": plain, "loop": compiled_loop, "pass": whole, "plain / pass": ratios[0], "loop / pass": ratios[1]}
