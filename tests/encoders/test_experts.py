"""The product of experts against closed-form posteriors of linear Gaussian observations, with weights written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.perturb import noise, perturb
from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.encoders import ProductOfExpertsEncoderConfig
from vardax_flax.heads import RegressionHeadConfig
from vardax_flax.ops import gaussian
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import GaussianSites
from vardax_flax.streams import SeedStream
from vardax_flax.training import FitConfig, OptimConfig, fit

H = np.array([0.7, -1.3])
MEAN, COV = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]])


def points(n, sites, background, seed=0):
    """x ~ N(m, P) with m a constant or a background, seen n times as h · x with errors of different size, some of them missing."""
    rng = np.random.default_rng(seed)
    m = MEAN + (3 * rng.normal(size=(n, 2)) if background else 0)
    x = m + rng.normal(size=(n, 2)) @ np.linalg.cholesky(COV).T
    scale = 0.5 * np.exp(rng.normal(size=(n, sites)))
    y = (x @ H)[:, None] + scale * rng.normal(size=(n, sites))
    mask = (rng.uniform(size=(n, sites)) < 0.7).astype(float)
    hidden = np.where(mask == 1, y, np.nan)
    return Batch(*map(jnp.asarray, (hidden, mask, x)), background=jnp.asarray(m) if background else None, noise_scale=jnp.asarray(scale))


def spec_of(batch):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)


def told(batch):
    """An encoder that was told what it would have to learn."""
    encoder = perturb(ProductOfExpertsEncoderConfig(width=8, depth=0).build(spec_of(batch), nnx.Rngs(0)), 0.0)
    encoder.calibrate(batch)
    inputs, increment = encoder.inputs, encoder.increment
    mean, std = np.asarray(increment.mean[...]), np.asarray(increment.std[...])
    # h · x − y in units of σ, where x = x_b + mean + std d, and the standardised background is measured from its own mean
    offset = inputs.input.mean[...] - H @ mean - (0 if batch.background is None else H @ encoder.background.mean[...])
    weights = jnp.concatenate([jnp.asarray(H * std), jnp.stack([inputs.input.std[...], offset])]) / jnp.exp(inputs.noise.mean[...])
    encoder.net.last.kernel[...] = jnp.zeros_like(encoder.net.last.kernel[...])
    encoder.net.last.bias[...] = weights
    encoder.prior_mean[...] = jnp.asarray(((0 if batch.background is not None else MEAN) - mean) / std)
    factor = np.linalg.cholesky(np.linalg.inv(COV / np.outer(std, std))).T
    encoder.prior_factor[...] = jnp.asarray(np.triu(factor, 1) + np.diag(np.log(np.diag(factor))))
    return encoder


@mostly_slow("background", [True, False], ids=["background", "constant"])
def test_it_is_the_exact_posterior_of_linear_observations_with_gaussian_noise(background, x64):
    batch = points(40, 5, background)
    batch = batch._replace(mask=batch.mask.at[0].set(0), input=batch.input.at[0].set(jnp.nan))  # of nothing: the prior
    encoder = told(batch)
    context, frame = jax.jit(encoder.locate)(batch)
    z, log_det = jax.jit(encoder.to_z)(batch.target, batch, frame)
    draws = jax.jit(encoder.to_x)(jnp.broadcast_to(jnp.concatenate([jnp.zeros((1, 2)), jnp.eye(2)]), (40, 3, 2)), batch, frame)
    for i in range(40):
        seen = np.asarray(batch.mask[i]) == 1
        weight = 1 / np.square(np.asarray(batch.noise_scale[i])[seen])
        prior = np.asarray(batch.background[i]) if background else MEAN
        cov = np.linalg.inv(np.linalg.inv(COV) + weight.sum() * np.outer(H, H))
        mean = cov @ (np.linalg.solve(COV, prior) + H * (weight @ np.asarray(batch.input[i])[seen]))
        np.testing.assert_allclose(draws[i, 0], mean, atol=1e-9)
        root = np.asarray(draws[i, 1:] - draws[i, 0]).T
        np.testing.assert_allclose(root @ root.T, cov, atol=1e-9)
        log_q = -0.5 * jnp.square(z[i]).sum() - np.log(2 * np.pi) + log_det[i]
        np.testing.assert_allclose(log_q, gaussian.log_prob(batch.target[i], mean, np.linalg.cholesky(cov)), atol=1e-8)
        np.testing.assert_allclose(context[i, 2:], 0.5 * np.log(np.diag(cov)) - np.log(encoder.increment.std[...]), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True], ids=["constant", "background"])
def test_it_is_a_bijection_over_any_leading_axes(background, x64):
    batch = points(6, 5, background)
    encoder = perturb(told(batch), 0.3)
    frame = encoder.locate(batch).frame
    z = noise(6, 7, 2).astype(float)
    x = encoder.to_x(z, batch, frame)
    again, log_det = encoder.to_z(x, batch, frame)
    assert x.shape == (6, 7, 2) and log_det.shape in ((6, 1), (6, 7))
    np.testing.assert_allclose(again, z, atol=1e-10)
    two = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), batch)
    np.testing.assert_allclose(encoder.to_x(z.reshape(2, 3, 7, 2), two, encoder.locate(two).frame).reshape(x.shape), x, atol=1e-10)
    one = jax.tree.map(lambda leaf: leaf[0], batch)
    alone = encoder.locate(one).frame
    np.testing.assert_allclose(encoder.to_x(z[0], one, alone), x[0], atol=1e-10)
    np.testing.assert_allclose(encoder.to_x(z[0, 0], one, alone), x[0, 0], atol=1e-10)
    jacobian = jax.jacfwd(lambda x: encoder.to_z(x, one, alone)[0])(x[0, 0])
    np.testing.assert_allclose(encoder.to_z(x[0, 0], one, alone)[1], np.linalg.slogdet(jacobian)[1], atol=1e-10)


@pytest.mark.slow
def test_it_learns_the_operator_of_random_sites():
    """Mean KL(exact ‖ q) after seconds of training; without a look at the sites it stays above 0.5 nats."""
    simulator = GaussianSites(nodes=3, sites=5)
    config = AmortizedConfig(ProductOfExpertsEncoderConfig(width=16, depth=1), RegressionHeadConfig("diagonal", width=8))
    made = config.build(simulator, nnx.Rngs(0))
    stream = SeedStream(simulator, 64)
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=20)
    fit(made, stream, FitConfig(steps=400, eval_every=400, held_out=256, optim=optim), progress=False)
    batch = stream.held_out(1000)
    mean, cov = jax.vmap(simulator.posterior)(batch)
    exact = jax.vmap(lambda x, m, c: gaussian.log_prob(x, m, jnp.linalg.cholesky(c)))(batch.target, mean, cov)
    assert abs(float((exact - made.log_prob(batch.target, batch)).mean())) < 0.1


def test_what_it_cannot_see_is_refused():
    batch = points(3, 5, True)
    config = ProductOfExpertsEncoderConfig()
    with pytest.raises(ConfigError, match="expected a spec with a target, got None; do "):
        config.build(spec_of(batch._replace(target=None)), nnx.Rngs(0))
    with pytest.raises(ConfigError, match="expected a background of the shape of the state, or none, got .*; do "):
        config.build(spec_of(batch._replace(background=jnp.zeros((3, 4)))), nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"expected an observation of shape \(n,\) or \(n, channels\), got \(2, 3, 4\); do "):
        field = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
        config.build(Batch(field, field, field), nnx.Rngs(0))
