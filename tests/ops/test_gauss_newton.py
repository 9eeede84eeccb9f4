"""Gauss–Newton on problems with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops.gauss_newton import gauss_newton
from vardax_flax.simulators import Lorenz63

WINDOWS = "tests/data/l63_win_full.npz"


def solve(residual, x, steps):
    return jax.jit(lambda x: gauss_newton(lambda x, _: residual(x), x, jnp.arange(steps)))(x)


def test_a_linear_problem_is_solved_in_one_step(x64) -> None:
    rng = np.random.default_rng(0)
    matrix, right = rng.standard_normal((7, 3)), rng.standard_normal(7)
    x, factor = solve(lambda x: matrix @ x - right, jnp.zeros(3), 1)
    np.testing.assert_allclose(x, np.linalg.lstsq(matrix, right)[0], atol=1e-12)
    np.testing.assert_allclose(factor.T @ factor, matrix.T @ matrix, atol=1e-12)
    assert (np.diagonal(factor) > 0).all() and abs(np.tril(factor, -1)).max() == 0


def test_a_step_never_goes_uphill(x64) -> None:
    def residual(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.sin(5 * x), 0.1 * x])

    for start in np.linspace(-3, 3, 25):
        x0 = jnp.array([start])
        x = solve(residual, x0, 3).x
        assert jnp.square(residual(x)).sum() <= jnp.square(residual(x0)).sum()


def test_each_step_sees_its_stage_and_the_factor_that_of_the_last(x64) -> None:
    """Each stage is a linear problem of its own, solved in the one step it has."""
    x, factor = gauss_newton(lambda x, stage: stage * x - 1, jnp.ones(2), jnp.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(x, 0.25, atol=1e-12)
    np.testing.assert_allclose(factor, 4 * np.eye(2), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 40])
def test_the_minimum_is_differentiated_not_the_iterations(steps, x64) -> None:
    """By the data it depends on, forward and in reverse, where the residual is far from zero: dx/dy = −H⁻¹ ∂²C/∂x∂y; the factor follows."""

    def residual(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.concatenate([x - y[:2], 3 * jnp.sin(x[:1] * x[1:]) - y[2:]])

    def found(y: jax.Array) -> jax.Array:
        x, factor = gauss_newton(lambda x, _: residual(x, y), jnp.zeros(2), jnp.arange(steps))
        return jnp.concatenate([x, (factor.T @ factor).ravel()])

    def cost(x: jax.Array, y: jax.Array) -> jax.Array:
        return 0.5 * jnp.square(residual(x, y)).sum()

    def precision(x: jax.Array, y: jax.Array) -> jax.Array:
        jacobian = jax.jacfwd(residual)(x, y)
        return (jacobian.T @ jacobian).ravel()

    y = jnp.array([0.5, 0.8, 3.0])
    x = found(y)[:2]
    moved = -np.linalg.solve(jax.hessian(cost)(x, y), jax.jacfwd(jax.grad(cost), argnums=1)(x, y))
    expected = np.concatenate([moved, jax.jacfwd(precision)(x, y) @ moved])
    np.testing.assert_allclose(jax.jit(jax.jacfwd(found))(y), expected, atol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.jacrev(found))(y), expected, atol=1e-9)


def test_it_reaches_the_stored_modes_and_covariances_of_lorenz63_windows(x64) -> None:
    data, simulator = np.load(WINDOWS), Lorenz63(noise_std=float(np.sqrt(2.0)))
    element = jax.eval_shape(simulator.sample, jax.random.key(0))

    def one(y: jax.Array, background: jax.Array, start: jax.Array):
        window = element._replace(input=y, mask=jnp.ones_like(y), background=background)
        return solve(lambda x: simulator.residual(x, window), start, 12)

    x, factor = jax.jit(jax.vmap(one))(data["y"], data["xb"], data["x0_truth"])
    sd = np.sqrt(np.diagonal(data["P_gn"], axis1=1, axis2=2))
    near = (np.abs(x - data["map"]) / sd).max(axis=1) < 1e-4
    assert near.sum() >= 28  # from the truth, nearly all; a few stop in a narrow valley of the window
    precision = np.einsum("eji,ejk->eik", factor, factor)
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
