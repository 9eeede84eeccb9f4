"""Noise of heads: what it is drawn from does not change its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.heads.sampling import element_keys, element_noise


@pytest.mark.parametrize("partitionable", [True, False])
def test_noise_is_that_of_each_element_by_itself(partitionable):
    with jax.threefry_partitionable(partitionable):
        key = jax.random.key(0)
        noise = element_noise(jnp.zeros((4, 2)), key, 7, 3)
        for row, own in zip(noise, element_keys((4,), key), strict=True):
            np.testing.assert_array_equal(row, jax.random.normal(own, (7, 3)))
