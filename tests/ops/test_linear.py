"""Conjugate gradients against a dense solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops.linear import conjugate_gradient, truncated_conjugate_gradient


def system(n=12, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n, n))
    return jnp.asarray(root @ root.T + np.diag(10.0 ** rng.uniform(0, 4, n))), jnp.asarray(rng.standard_normal(n))


def test_as_many_steps_as_unknowns_solve_and_further_ones_do_no_harm(x64):
    a, b = system()
    exact = np.linalg.solve(a, b)
    for steps in (16, 60):
        x = conjugate_gradient(lambda v: a @ v, b, steps, preconditioner=1 / jnp.diag(a))
        np.testing.assert_allclose(x, exact, rtol=1e-8)
    assert abs(conjugate_gradient(lambda v: a @ v, b, 3) - exact).max() > 1e-4


def test_the_energy_falls_with_every_step_and_faster_with_a_preconditioner(x64):
    a, b = system()
    energy = lambda x: float(0.5 * x @ a @ x - b @ x)  # noqa: E731
    plain, scaled = (
        [energy(conjugate_gradient(lambda v: a @ v, b, k, preconditioner=p)) for k in range(1, 8)] for p in (None, 1 / jnp.diag(a))
    )
    assert (np.diff(plain) < 0).all() and (np.diff(scaled) < 0).all()
    assert scaled[2] < plain[2]


def test_a_tolerance_ends_early_and_the_residual_is_its_own(x64):
    a, b = system()
    found = [truncated_conjugate_gradient(lambda v: a @ v, b, 60, tolerance=t, preconditioner=1 / jnp.diag(a)) for t in (1e-1, 1e-10)]
    for x, residual in found:
        np.testing.assert_allclose(residual, b - a @ x, atol=1e-8 * np.linalg.norm(b))
    np.testing.assert_allclose(found[1].x, np.linalg.solve(a, b), rtol=1e-8)
    assert np.linalg.norm(found[0].residual) > 1e3 * np.linalg.norm(found[1].residual)
    same = truncated_conjugate_gradient(lambda v: a @ v, b, 3, tolerance=1e-12).x
    np.testing.assert_allclose(same, conjugate_gradient(lambda v: a @ v, b, 3), rtol=1e-9)


@pytest.mark.parametrize("product", [lambda v: -v, lambda v: jnp.nan * v, lambda v: jnp.inf * v])
def test_a_product_that_is_not_positive_and_finite_ends_where_it_stands(product):
    found = truncated_conjugate_gradient(product, jnp.ones(3), 10, tolerance=1e-6)
    np.testing.assert_array_equal(found.x, 0)
    np.testing.assert_array_equal(conjugate_gradient(product, jnp.ones(3), 4), 0)


def test_nothing_to_solve_is_zero_with_a_finite_derivative():
    a, _ = system()
    solve = lambda b: conjugate_gradient(lambda v: a @ v, b, 5)  # noqa: E731
    np.testing.assert_array_equal(solve(jnp.zeros(12)), 0)
    assert np.isfinite(jax.jacrev(solve)(jnp.zeros(12))).all()
