"""Compressed tails: the identity inside, a bijection with its slope outside, finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.ops.tails import compress_tails, expand_tails


def test_it_is_a_bijection_with_the_stated_slope(x64):
    z = np.concatenate([-np.geomspace(1e6, 1e-3, 50), np.geomspace(1e-3, 1e6, 50)])
    y, log_slope = compress_tails(jnp.asarray(z), 6.0)
    np.testing.assert_allclose(expand_tails(y, 6.0), z, rtol=1e-9)
    np.testing.assert_allclose(log_slope, jnp.log(jax.vmap(jax.grad(lambda z: compress_tails(z, 6.0)[0]))(z)), atol=1e-12)
    inside = abs(z) <= 6
    np.testing.assert_array_equal(y[inside], z[inside])
    assert abs(y).max() < 20 and (np.diff(y) > 0).all()


def test_nothing_overflows():
    z = expand_tails(jnp.array([-1e30, 0.0, 1e30]), 6.0)
    assert np.isfinite(z).all() and np.isfinite(compress_tails(z, 6.0)[0]).all()
