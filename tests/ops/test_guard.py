"""Cotangents cut where they are not finite, in every mode and under vmap, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops.guard import finite_cotangents


def guarded(x):
    """exp(exp(20 x)) where that is finite, else x."""
    value = jnp.exp(jnp.exp(20 * finite_cotangents(x)))
    return jnp.where(jnp.isfinite(value), value, x)


@pytest.mark.parametrize("derivative", [jax.grad(guarded), jax.jacfwd(guarded), jax.jacrev(guarded)])
def test_a_discarded_branch_leaves_no_nan(derivative):
    found = jax.jit(jax.vmap(derivative))(jnp.array([0.1, 1.0]))
    inner = np.exp(2.0)
    np.testing.assert_allclose(found, [20 * inner * np.exp(inner), 1.0], rtol=1e-4)


def test_without_the_guard_there_is_one():
    assert np.isnan(jax.grad(lambda x: jnp.where(x > 0, jnp.sqrt(x) * 0, x))(0.0))
    assert jax.grad(lambda x: jnp.where(x > 0, jnp.sqrt(finite_cotangents(x)) * 0, x))(0.0) == 1.0


def test_what_is_not_a_real_number_passes():
    mask = jnp.array([True, False])
    assert finite_cotangents({"mask": mask})["mask"] is mask


def test_second_derivatives_pass(x64):
    both = jax.hessian(lambda x: (finite_cotangents(x) ** 3).sum())(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(both, np.diag([6.0, 12.0]))
