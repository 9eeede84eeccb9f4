"""The iterated smoother on problems whose minimum is known, and interpolation in time by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops.integrate import rk4
from vardax_flax.ops.interpolate import interpolate_in_time
from vardax_flax.ops.small import cholesky, solve_lower
from vardax_flax.ops.smoother import iterated_smoother, smoother_step, weak_cost
from vardax_flax.simulators import Lorenz63Climatology

DATA = Path(__file__).resolve().parent.parent / "data" / "lg_smoother.npz"


def dense_minimum(transition, y, precision, mean, cov, q):
    """Of the weak-constraint cost with a linear model, by one dense solve."""
    times, n = y.shape
    hessian, right = np.zeros((times * n, times * n)), np.zeros(times * n)
    at = lambda t: slice(t * n, (t + 1) * n)  # noqa: E731
    hessian[at(0), at(0)] += np.linalg.inv(cov)
    right[at(0)] += np.linalg.solve(cov, mean)
    for t in range(times):
        hessian[at(t), at(t)] += np.diag(precision[t])
        right[at(t)] += precision[t] * y[t]
    for t in range(times - 1):
        hessian[at(t + 1), at(t + 1)] += np.eye(n) / q**2
        hessian[at(t), at(t)] += transition.T @ transition / q**2
        hessian[at(t + 1), at(t)] -= transition / q**2
        hessian[at(t), at(t + 1)] -= transition.T / q**2
    return np.linalg.solve(hessian, right).reshape(times, n)


@pytest.mark.parametrize("n", [3, 12])
def test_one_step_solves_a_linear_problem_exactly(x64, n):
    rng = np.random.default_rng(n)
    transition = np.linalg.qr(rng.normal(size=(n, n)))[0] * 0.98
    y, seen = rng.normal(size=(9, n)), rng.random((9, n)) < 0.4
    seen[4] = False
    mean, root = rng.normal(size=n), rng.normal(size=(n, n))
    cov, precision = root @ root.T + np.eye(n), seen / 0.7
    arguments = (jnp.asarray(y), jnp.asarray(precision), jnp.asarray(mean), jnp.asarray(cov), jnp.array(0.3))
    step = lambda x: jnp.asarray(transition) @ x  # noqa: E731
    found = smoother_step(step, jnp.asarray(rng.normal(size=(9, n))), *arguments)
    np.testing.assert_allclose(found, dense_minimum(transition, y, precision, mean, cov, 0.3), rtol=1e-9, atol=1e-10)
    assert float(jnp.abs(jax.grad(lambda x: weak_cost(step, x, *arguments))(found)).max()) < 1e-9


def test_without_model_error_it_is_the_strong_constraint_smoother(x64):
    data = np.load(DATA)
    ahead = lambda rows: np.concatenate([np.zeros((1, 20)), rows])  # noqa: E731  the first state is not observed
    transition, mask = jnp.asarray(data["A"]), ahead(data["mask"])
    precision = jnp.asarray(np.where(mask > 0, 1.0 / data["Rv"], 0.0))
    y = jnp.asarray(np.where(mask > 0, np.nan_to_num(ahead(data["y_strong"])), 0.0))
    rest = jnp.asarray(data["xb"]), jnp.asarray(data["B"]), jnp.array(0.0)
    found = smoother_step(lambda x: transition @ x, jnp.zeros_like(y), y, precision, *rest)
    np.testing.assert_allclose(found, data["strong_mean"], atol=1e-7)


def test_iterations_find_the_minimum_of_a_chaotic_cost(x64):
    simulator = Lorenz63Climatology()
    step = lambda x: rk4(simulator.tendency, x, 0.01)  # noqa: E731
    truth = jax.lax.scan(lambda x, _: (step(x), x), jnp.asarray(simulator.attractor()[7]), None, length=80)[1]
    rng = np.random.default_rng(0)
    mask = jnp.zeros(80).at[5::8].set(1.0)[:, None] * jnp.ones(3)
    y = truth + jnp.asarray(rng.normal(size=truth.shape))
    bank = simulator.attractor()
    rest = y, mask, jnp.asarray(bank.mean(axis=0)), jnp.asarray(np.cov(bank.T))
    guess = interpolate_in_time(y, mask)
    found, cost = jax.jit(lambda x: iterated_smoother(step, x, *rest, jnp.asarray(np.geomspace(0.1, 0.02, 12))))(guess)
    np.testing.assert_allclose(cost, weak_cost(step, found, *rest, jnp.array(0.02)), rtol=1e-12)
    again, lower = iterated_smoother(step, found, *rest, jnp.full(8, 0.02))
    assert float(jnp.abs(jax.grad(lambda x: weak_cost(step, x, *rest, jnp.array(0.02)))(again)).max()) < 1e-5
    assert float(lower) <= float(cost) * (1 + 1e-12)
    rmse = lambda x: float(jnp.sqrt(jnp.square(x - truth).mean()))  # noqa: E731
    assert rmse(found) < 0.5 * rmse(guess)


@pytest.mark.parametrize("n", [1, 3, 8, 9])
def test_small_factors_are_those_of_lapack(x64, n):
    root = np.random.default_rng(n).normal(size=(n, n))
    a, b = root @ root.T + np.eye(n), np.random.default_rng(0).normal(size=(n, 2))
    lower = cholesky(jnp.asarray(a))
    np.testing.assert_allclose(lower, np.linalg.cholesky(a), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(solve_lower(lower, jnp.asarray(b)), np.linalg.solve(np.asarray(lower), b), rtol=1e-9, atol=1e-12)
    back = solve_lower(lower, jnp.asarray(b[:, 0]), transposed=True)
    np.testing.assert_allclose(back, np.linalg.solve(np.asarray(lower).T, b[:, 0]), rtol=1e-9, atol=1e-12)


def test_interpolation_is_that_of_numpy():
    rng = np.random.default_rng(0)
    y, mask = rng.normal(size=(30, 4)), (rng.random((30, 4)) < 0.3).astype(float)
    mask[:, 3] = 0
    found = interpolate_in_time(jnp.asarray(np.where(mask > 0, y, np.nan)), jnp.asarray(mask))
    for j in range(3):
        seen = np.flatnonzero(mask[:, j])
        np.testing.assert_allclose(found[:, j], np.interp(np.arange(30), seen, y[seen, j]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, 3], 0)
