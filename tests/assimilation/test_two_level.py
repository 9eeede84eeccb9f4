"""Incremental 4D-Var of two time scales at once: the cost falls whatever the inner loop, and both scales gain."""

import functools

import jax
import numpy as np
import pytest

from vardax_flax.assimilation import Blocks, Diagonal, IncrementalFourDVar, repeat
from vardax_flax.core.batch import Batch
from vardax_flax.ops.integrate import rk4
from vardax_flax.simulators import Lorenz96TwoLevel

TIMES, WINDOWS = 4, 16
# RK4 steps of 0.005 between two observed times, and errors of the slow variables. What is seen of the fast ones alone is the sum of each
# eight, by what it does to the slow ones, and only by a good instrument; both windows end before the fast ones bend too far
SET_UPS = {"slow": (4, 0.005), "all": (2, 0.5)}


@functools.cache
def twin(observed):
    """Truths, and windows around backgrounds with errors of 1 in the slow and 0.1 in the fast variables."""
    between, noise_std = SET_UPS[observed]
    simulator = Lorenz96TwoLevel(observed=observed, noise_std=noise_std, steps=TIMES * between, observe_every_step=between)
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), WINDOWS))
    noise = np.random.default_rng(0).normal(size=batch.target.shape) * simulator.scales()
    return np.asarray(batch.target), Batch(batch.input, batch.mask, background=np.asarray(batch.target + noise)), simulator


def method_of(observed, **options):
    (between, noise_std), (_, _, simulator) = SET_UPS[observed], twin(observed)
    step = repeat(lambda x: rk4(simulator.tendency, x, simulator.dt), between)
    scales = simulator.scales()
    slow, fast = np.split(scales**2, [simulator.n_slow])
    seen = scales[: simulator.n_slow] if observed == "slow" else scales
    return IncrementalFourDVar(
        scales.shape, step, background_cov=Blocks([Diagonal(slow), Diagonal(fast)]), obs_cov=(noise_std * seen) ** 2,
        obs_op=lambda x: x[: len(seen)], observed_at_start=False, **options,
    )  # fmt: skip


def errors(state, truth, n_slow):
    square = np.square(np.asarray(state) - truth)
    return np.sqrt(square[:, :n_slow].mean()), np.sqrt(square[:, n_slow:].mean())


@pytest.mark.slow
@pytest.mark.parametrize("observed", ["slow", "all"])
def test_both_scales_gain_and_the_cost_never_rises(x64, observed):
    truth, batch, simulator = twin(observed)
    costs = []
    for outer in (1, 3, 8):
        analysis = method_of(observed, outer=outer, inner=60).solve(batch)
        costs.append(np.asarray(analysis.solve.cost))
    assert np.isfinite(costs).all() and (np.diff(costs, axis=0) <= 0).all() and (costs[-1] < costs[0]).any()
    before, after = errors(batch.background, truth, simulator.n_slow), errors(analysis.state, truth, simulator.n_slow)
    print(observed, "background", before, "analysis", after, "cost", np.mean(costs, axis=1))
    limits = (0.5, 0.7) if observed == "all" else (0.2, 1.0)
    assert after[0] < limits[0] * before[0] and after[1] < limits[1] * before[1], (before, after)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [1, 2, 5])
def test_an_inner_loop_cut_short_is_never_a_number_that_is_none(x64, inner):
    _, batch, _ = twin("all")
    first, later = (np.asarray(method_of("all", outer=outer, inner=inner).solve(batch).solve.cost) for outer in (1, 4))
    assert np.isfinite(later).all() and (later <= first).all() and (later < first).any()
