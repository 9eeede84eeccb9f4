"""Conjugate gradients against a dense solve."""

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.ops.linear import conjugate_gradient


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


def test_nothing_to_solve_is_zero_with_a_finite_derivative():
    a, _ = system()
    solve = lambda b: conjugate_gradient(lambda v: a @ v, b, 5)  # noqa: E731
    np.testing.assert_array_equal(solve(jnp.zeros(12)), 0)
    assert np.isfinite(jax.jacrev(solve)(jnp.zeros(12))).all()
