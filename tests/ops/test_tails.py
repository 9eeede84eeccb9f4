"""Compressed tails: the identity inside, a bijection with its slope outside, finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops.tails import compress_tails, expand_tails


@pytest.mark.parametrize("reach", [1.0, 300.0, 1e9])
def test_it_is_a_bijection_with_the_stated_slope(reach, x64):
    reach = jnp.asarray(reach)
    z = np.concatenate([-np.geomspace(1e6, 1e-3, 50), np.geomspace(1e-3, 1e6, 50)])
    y, log_slope = compress_tails(jnp.asarray(z), 6.0, reach)
    np.testing.assert_allclose(expand_tails(y, 6.0, reach), z, rtol=1e-9)
    np.testing.assert_allclose(log_slope, jnp.log(jax.vmap(jax.grad(lambda z: compress_tails(z, 6.0, reach)[0]))(z)), atol=1e-9)
    inside = abs(z) <= 6
    np.testing.assert_array_equal(y[inside], z[inside])
    assert (np.diff(y) > 0).all()
    logarithmic = abs(z) - 6 < reach
    np.testing.assert_allclose(abs(y[logarithmic & ~inside]), 6 + np.log1p(abs(z[logarithmic & ~inside]) - 6))
    np.testing.assert_allclose(jnp.exp(log_slope)[~logarithmic], 1 / (1 + reach))


def test_nothing_overflows():
    z = expand_tails(jnp.array([-1e30, 0.0, 1e30]), 6.0, jnp.array(1e5))
    assert np.isfinite(z).all() and np.isfinite(compress_tails(z, 6.0, jnp.array(1e5))[0]).all()
