"""The regression that the test quantities lean on, against a dense solve."""

import jax
import numpy as np
import pytest

from vardax_flax.simulators import LinearGaussian, Lorenz96
from vardax_flax.validation.quantities import PILOT_SIZE, RESIDUAL, RIDGE, make_pilot, regress


def kernel(a, b):
    linear = a @ b.T / a.shape[1]
    return linear + np.exp(-0.5 * ((a**2).mean(axis=1)[:, None] + (b**2).mean(axis=1) - 2 * linear))


@pytest.mark.parametrize("simulator", [LinearGaussian.random(1, 1), LinearGaussian.random(3, 8), Lorenz96()], ids=["1", "8", "many"])
def test_the_pilot_regression_is_that_of_a_dense_solve(simulator):
    """ŷ ↦ k(y, Y) (K + λ I)⁻¹ X, in double precision; one feature is the worst condition there is."""
    key = jax.random.key(3)
    pilot = make_pilot(simulator, key)
    pairs = jax.vmap(simulator.sample)(jax.random.split(jax.random.split(key)[0], PILOT_SIZE))
    inputs = np.asarray(pilot.inputs, np.float64)
    states = (np.asarray(pairs.target, np.float64).reshape(PILOT_SIZE, -1) - np.asarray(pilot.mean)) / np.asarray(pilot.scale)
    gram = kernel(inputs, inputs)
    expected = gram @ np.linalg.solve(gram + RIDGE * np.eye(PILOT_SIZE), states)
    got = np.asarray(jax.jit(jax.vmap(lambda element: regress(pilot, element)))(pairs))
    assert np.linalg.norm(got - expected) <= (RESIDUAL + 2e-5) * np.linalg.norm(states)  # what is left of the equations, and rounding
    assert np.linalg.norm(expected) > 0.1 * np.linalg.norm(states)
