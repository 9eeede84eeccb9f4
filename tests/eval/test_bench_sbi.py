"""The reference posteriors that the benchmark scores against."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from eval.bench import sbi
from eval.bench.__main__ import main
from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import LogJoint
from vardax_flax.simulators import LinearGaussian
from vardax_flax.simulators.observe import fully_observed, gaussian_log_likelihood
from vardax_flax.simulators.priors import LogNormal as LogNormalPrior


class LogNormal(LogJoint):
    """θ ~ LogNormal(0, 1), log x ~ N(log θ, 0.5²): log θ has a normal posterior."""

    kind = "log_normal"

    def sample(self, key):
        a, b = jax.random.split(key)
        theta = jnp.exp(jax.random.normal(a, (2,)))
        return fully_observed(theta * jnp.exp(0.5 * jax.random.normal(b, (2,))), theta)

    def log_prior(self, x, element):
        return LogNormalPrior((0.0, 0.0), (1.0, 1.0)).log_prob(x)

    def log_likelihood(self, x, element):
        return gaussian_log_likelihood(jnp.log(element.input), element.mask, jnp.log(x), 0.5)


@pytest.mark.slow
def test_importance_draws_of_a_gaussian_and_of_a_positive_parameter():
    simulator = LinearGaussian.random(3, 4)
    element = simulator.sample(jax.random.key(0))
    draws = sbi.importance_draws(simulator, element, jax.random.key(1), False)
    mean, cov = simulator.posterior(element)
    white = np.linalg.solve(np.linalg.cholesky(cov), (draws - np.asarray(mean)).T)
    assert draws.shape == (10_000, 3)
    assert min(stats.kstest(row, "norm").pvalue for row in white) > 1e-3
    np.testing.assert_allclose(np.cov(white), np.eye(3), atol=0.06)
    element = LogNormal().sample(jax.random.key(2))
    draws = sbi.importance_draws(LogNormal(), element, jax.random.key(1), True)
    white = (np.log(draws) - 0.8 * np.log(np.asarray(element.input))) / np.sqrt(0.2)
    assert min(stats.kstest(row, "norm").pvalue for row in white.T) > 1e-3


@pytest.mark.slow
def test_a_posterior_of_another_shape_is_not_sampled_badly():
    class Banana(LogNormal):
        def log_likelihood(self, x, element):
            return -1e6 * jnp.square(x[0] - jnp.sin(3 * x[1]) - 1.5)

    with pytest.raises(ConfigError, match="expected an effective sample size above 20000, got .*; do"):
        sbi.importance_draws(Banana(), Banana().sample(jax.random.key(0)), jax.random.key(1), False)


def test_distractors_have_the_stored_posterior():
    truth, stored = sbi.reference("slcp_distractors"), sbi.reference("slcp")
    points = jax.vmap(sbi.TASKS["slcp_distractors"].informative)(jnp.asarray(truth.observations))
    np.testing.assert_array_equal(points, stored.observations)
    np.testing.assert_array_equal(truth.draws, stored.draws)


@pytest.mark.parametrize("arguments", [["sbi", "--tasks", "two_moon"], ["sbi", "--simulations", "3"], ["sbj"]])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ConfigError, match="expected .*, got .*; do "):
        main(arguments)
