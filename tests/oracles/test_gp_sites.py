"""Irregular observations, from the simulator to the answer: an exact posterior, and a learned one that nears it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.encoders import SetEncoderConfig
from vardax_flax.heads import RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import GaussianSites
from vardax_flax.streams import ArrayStream, SeedStream
from vardax_flax.training import FitConfig, OptimConfig, fit


def element_of(simulator, seed=0):
    """An element made by NumPy, two of its sites silent."""
    rng = np.random.default_rng(seed)
    n = simulator.sites
    mask = np.ones(n)
    mask[[1, n - 1]] = 0
    parts = {"input": rng.normal(size=n), "mask": mask, "coords": rng.uniform(size=(n, 1)), "noise_scale": rng.uniform(0.1, 0.5, n)}
    return Batch(**{name: jnp.asarray(value) for name, value in parts.items()})


def test_the_posterior_is_the_brute_force_conditional(x64):
    simulator = GaussianSites(nodes=5, sites=6, length=0.4)
    element, s = element_of(simulator), np.linspace(0, 1, 5)
    r = np.sqrt(3) * np.abs(s[:, None] - s) / 0.4
    prior = (1 + r) * np.exp(-r) + 1e-6 * np.eye(5)
    seen = np.asarray(element.mask) == 1
    sites, y, scale = (np.asarray(field)[seen] for field in (element.coords[:, 0], element.input, element.noise_scale))
    h = np.stack([np.interp(sites, s, row) for row in np.eye(5)], axis=1)
    gain = prior @ h.T @ np.linalg.inv(h @ prior @ h.T + np.diag(scale**2))
    for hidden in (0.0, np.nan):
        broken = element._replace(input=jnp.where(seen, element.input, hidden), coords=jnp.where(seen[:, None], element.coords, hidden))
        broken = broken._replace(noise_scale=jnp.where(seen, element.noise_scale, hidden))
        mean, cov = simulator.posterior(broken)
        np.testing.assert_allclose(mean, gain @ y, atol=1e-10)
        np.testing.assert_allclose(cov, prior - gain @ h @ prior, atol=1e-10)
        x = np.random.default_rng(2).normal(size=5)
        np.testing.assert_allclose(simulator.log_likelihood(jnp.asarray(x), broken), stats.norm(h @ x, scale).logpdf(y).sum(), atol=1e-10)
    np.testing.assert_allclose(simulator.log_prior(jnp.asarray(x), element), stats.multivariate_normal(cov=prior).logpdf(x), atol=1e-8)


@pytest.mark.slow
def test_draws_are_draws_of_the_posterior(x64):
    simulator = GaussianSites(nodes=4, sites=5)
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), 4000))
    mean, cov = jax.jit(jax.vmap(simulator.posterior))(batch)
    white = np.linalg.solve(np.linalg.cholesky(cov), np.asarray(batch.target - mean)[..., None])[..., 0]
    assert min(stats.kstest(column, "norm").pvalue for column in white.T) > 1e-3
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=5 * np.sqrt(2 / 4000))


@pytest.mark.parametrize("bad", [{"nodes": 1}, {"sites": 0}, {"length": 0.0}, {"noise_std": 0.0}, {"noise_spread": -1.0}])
def test_fields_that_make_no_sense_are_refused(bad):
    with pytest.raises(ConfigError, match="expected .*, got .*; do "):
        GaussianSites(**bad)


@pytest.mark.slow
def test_a_posterior_of_irregular_observations_trains_and_answers():
    """Through streams, calibration, training and the checks of a call: closer to the exact mean than the prior, and than mirrored sites."""
    simulator = GaussianSites(nodes=2, sites=4, missing_rate=0.3)
    encoder = SetEncoderConfig(pooling="deepset", features=16, width=16, depth=1)
    config = AmortizedConfig(encoder=encoder, head=RegressionHeadConfig(width=16), allow_unobserved=True)
    posterior = config.build(simulator, nnx.Rngs(0))
    stream = SeedStream(simulator, 128)
    test = stream.held_out(200)
    stored = ArrayStream(jax.tree.map(np.asarray, test), 16)
    assert stored.payload(0, slice(0, 16)).coords.shape == (16, 4, 1)
    fit(posterior, stream, FitConfig(steps=600, eval_every=600, held_out=256, optim=OptimConfig(learning_rate=5e-3)))
    mean, _ = jax.jit(jax.vmap(simulator.posterior))(test)
    seen = test._replace(target=None)

    def error(batch):
        return float(np.sqrt(np.mean(np.square(posterior(batch) - mean))))

    assert error(seen) < 0.5 * float(np.sqrt(np.mean(np.square(mean))))
    assert error(seen._replace(coords=1 - seen.coords)) > 1.5 * error(seen)
    np.testing.assert_allclose(posterior(jax.tree.map(lambda leaf: leaf[:, ::-1], seen)), posterior(seen), atol=1e-4)
    hidden = seen._replace(coords=jnp.where(seen.mask[..., None] == 1, seen.coords, jnp.nan))
    np.testing.assert_array_equal(posterior(hidden), posterior(seen))
    assert posterior.sample(seen, jax.random.key(0), 3).shape == (200, 3, 2)
    with pytest.raises(ValueError, match="expected `coords` of shape .*, got None; do "):
        posterior(seen._replace(coords=None))
