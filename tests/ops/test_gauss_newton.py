"""Gauss–Newton on problems with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops.gauss_newton import Laplace, gauss_newton
from vardax_flax.simulators import Lorenz63

WINDOWS = "tests/data/l63_win_full.npz"


def test_a_linear_problem_is_solved_in_one_step(x64) -> None:
    rng = np.random.default_rng(0)
    matrix, right = rng.standard_normal((7, 3)), rng.standard_normal(7)
    x, factor, curvature, gradient = gauss_newton(lambda x: matrix @ x - right, jnp.zeros(3), steps=1)
    np.testing.assert_allclose(x, np.linalg.lstsq(matrix, right)[0], atol=1e-12)
    np.testing.assert_allclose(factor @ factor.T, matrix.T @ matrix, atol=1e-12)
    np.testing.assert_allclose(curvature, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    assert (np.diagonal(factor) > 0).all() and np.triu(factor, 1).max() == 0


def test_a_step_never_goes_uphill(x64) -> None:
    def residual(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.sin(5 * x), 0.1 * x])

    for start in np.linspace(-3, 3, 25):
        x0 = jnp.array([start])
        x = gauss_newton(residual, x0, steps=3).x
        assert jnp.square(residual(x)).sum() <= jnp.square(residual(x0)).sum()


def test_it_reaches_the_stored_modes_and_covariances_of_lorenz63_windows(x64) -> None:
    data, simulator = np.load(WINDOWS), Lorenz63(noise_std=float(np.sqrt(2.0)))
    element = jax.eval_shape(simulator.sample, jax.random.key(0))

    def solve(y: jax.Array, background: jax.Array, start: jax.Array) -> Laplace:
        one = element._replace(input=y, mask=jnp.ones_like(y), background=background)
        return gauss_newton(lambda x: simulator.residual(x, one), start, steps=12)

    x, factor, *_ = jax.jit(jax.vmap(solve))(data["y"], data["xb"], data["x0_truth"])
    sd = np.sqrt(np.diagonal(data["P_gn"], axis1=1, axis2=2))
    near = (np.abs(x - data["map"]) / sd).max(axis=1) < 1e-4
    assert near.sum() >= 28  # from the truth, nearly all; a few stop in a narrow valley of the window
    precision = np.einsum("eij,ekj->eik", factor, factor)
    np.testing.assert_allclose(np.linalg.inv(precision)[near], data["P_gn"][near], rtol=1e-3, atol=1e-5)


def test_the_residual_is_the_log_joint_up_to_a_constant(x64) -> None:
    simulator = Lorenz63(missing_rate=0.3)
    element = simulator.sample(jax.random.key(1))

    def log_joint(x: jax.Array) -> jax.Array:
        return simulator.log_prior(x, element) + simulator.log_likelihood(x, element)

    x = element.target
    shift = 0.3 * jnp.ones(3)
    change = log_joint(x + shift) - log_joint(x)
    half = 0.5 * (jnp.square(simulator.residual(x, element)).sum() - jnp.square(simulator.residual(x + shift, element)).sum())
    assert float(change) == pytest.approx(float(half), rel=1e-9)


def test_curvature_says_how_the_valley_bends(x64) -> None:
    """r = (x, 10 (y − a x²)): moving one standard deviation along x bends y by a, which is 10 a standard deviations of y."""
    a = 0.3
    x, factor, curvature, _ = gauss_newton(lambda v: jnp.stack([v[0], 10 * (v[1] - a * v[0] ** 2)]), jnp.array([0.4, 0.1]), steps=8)
    np.testing.assert_allclose(x, 0, atol=1e-8)
    np.testing.assert_allclose(factor, [[1, 0], [0, 10]], atol=1e-6)
    np.testing.assert_allclose(curvature, [[0, -20 * a], [0, 0]], atol=1e-6)
