"""Construction of the linear Gaussian model, and fields that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.core.config import ConfigError
from vardax_flax.simulators import LinearGaussian

FIELDS = {"prior_mean": (0.0, 0.0), "prior_cov": ((1.0, 0.0), (0.0, 1.0)), "operator": ((1.0, 1.0),), "noise_cov": ((0.5,),)}


def test_from_arrays_is_the_class():
    arrays = {name: jnp.array(value) for name, value in FIELDS.items()}
    assert LinearGaussian.from_arrays(**arrays, missing_rate=0.1) == LinearGaussian(**FIELDS, missing_rate=0.1)


def test_random_is_reproducible_and_differs_by_seed():
    assert LinearGaussian.random(3, 2, seed=1) == LinearGaussian.random(3, 2, seed=1)
    assert LinearGaussian.random(3, 2, seed=1) != LinearGaussian.random(3, 2, seed=2)
    simulator = LinearGaussian.random(3, 2, noise_std=0.2, missing_rate=0.3)
    np.testing.assert_allclose(np.diag(simulator.prior_cov), 1.0)
    np.testing.assert_allclose(simulator.noise_cov, 0.04 * np.eye(2))
    assert simulator.missing_rate == 0.3


@pytest.mark.parametrize(
    "bad",
    [
        {"prior_mean": (0.0, 0.0, 0.0)},
        {"prior_mean": ()},
        {"prior_cov": ((1.0, 2.0), (2.0, 1.0))},
        {"prior_cov": ((1.0, 0.5), (0.0, 1.0))},
        {"prior_cov": ((1.0, 0.0), (0.0,))},
        {"operator": ((1.0, 1.0, 1.0),)},
        {"noise_cov": ((0.0,),)},
        {"noise_cov": ((1.0, 0.0), (0.0, 1.0))},
        {"prior_mean": (0.0, float("nan"))},
    ],
)
def test_fields_that_do_not_fit_are_one_line_errors(bad):
    with pytest.raises(ConfigError, match=r"^expected [^\n]*, got [^\n]*; do [^\n]*$"):
        LinearGaussian(**FIELDS | bad)


@pytest.mark.parametrize("bad", [{"state_dim": 0}, {"obs_dim": -1}, {"noise_std": 0.0}])
def test_random_checks_its_arguments(bad):
    with pytest.raises(ConfigError, match=r"^expected [^\n]*, got [^\n]*; do [^\n]*$"):
        LinearGaussian.random(**{"state_dim": 2, "obs_dim": 2} | bad)


@pytest.mark.slow
def test_float32_posterior_is_close_to_float64():
    simulator = LinearGaussian.random(8, 6, noise_std=1e-2)
    element = simulator.sample(jax.random.key(0))
    mean, cov = simulator.posterior(element)
    with jax.enable_x64(True):
        exact_mean, exact_cov = simulator.posterior(type(element)(*(None if f is None else jnp.asarray(f, jnp.float64) for f in element)))
    np.testing.assert_allclose(mean, exact_mean, atol=2e-2)
    np.testing.assert_allclose(cov, exact_cov, atol=1e-3)
