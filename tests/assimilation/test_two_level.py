"""Incremental 4D-Var of two time scales at once: the cost falls whatever the inner loop, and both scales gain."""

import functools

import jax
import numpy as np
import pytest

from vardax_flax.assimilation import Blocks, Diagonal, IncrementalFourDVar, repeat
from vardax_flax.core.batch import Batch
from vardax_flax.ops.integrate import rk4
from vardax_flax.simulators import Lorenz96TwoLevel

TIMES, BETWEEN, WINDOWS = 4, 10, 8  # observed times of a window, RK4 steps between two of them


def step(x):
    return repeat(lambda x: rk4(Lorenz96TwoLevel().tendency, x, 0.005), BETWEEN)(x)


@functools.cache
def twin(observed):
    """Truths; observations with errors of 0.5 and 0.05 in slow and fast variables, backgrounds with errors of 1 and 0.1."""
    simulator = Lorenz96TwoLevel(observed=observed, steps=TIMES * BETWEEN, observe_every_step=BETWEEN)
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), WINDOWS))
    noise = np.random.default_rng(0).normal(size=batch.target.shape) * simulator.scales()
    return np.asarray(batch.target), Batch(batch.input, batch.mask, background=np.asarray(batch.target + noise)), simulator


def method_of(observed, **options):
    _, _, simulator = twin(observed)
    scales = simulator.scales()
    slow, fast = np.split(scales**2, [simulator.n_slow])
    seen = scales[: simulator.n_slow] if observed == "slow" else scales
    return IncrementalFourDVar(
        scales.shape, step, background_cov=Blocks([Diagonal(slow), Diagonal(fast)]), obs_cov=(0.5 * seen) ** 2,
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
    if observed == "all":
        assert after[0] < 0.5 * before[0] and after[1] < 0.7 * before[1], (before, after)
    else:
        assert after[0] < 0.8 * before[0] and after[1] < before[1], (before, after)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [1, 2, 5])
def test_an_inner_loop_cut_short_is_never_a_number_that_is_none(x64, inner):
    _, batch, _ = twin("all")
    first, later = (np.asarray(method_of("all", outer=outer, inner=inner).solve(batch).solve.cost) for outer in (1, 4))
    assert np.isfinite(later).all() and (later <= first).all() and (later < first).any()
