"""Draws bent towards new observations, against posteriors that are known: exact for Gaussians, and how far off elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from tests.perturb import noise, perturb
from vardax_flax.core.config import ConfigError
from vardax_flax.diffusion import EDM, SAMPLERS, STEPS, guide
from vardax_flax.diffusion.guidance import probes, spread
from vardax_flax.encoders import IdentityEncoderConfig
from vardax_flax.heads import RegressionHeadConfig, ScoreHeadConfig, guided_sample
from vardax_flax.heads.guidance import SAMPLER
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import LinearGaussian

C, KEY, N = 2, jax.random.key(3), 4000
OPERATOR = jnp.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.0], [0.3, 0.0, 0.0]])  # more numbers than the state has
WIDE = np.array([1.0, 0.5, 0.3])


def conditioned(mean, cov, operator, noise_std, y):
    """Moments of N(mean, cov) given y = operator x + noise."""
    operator, noise_cov = np.asarray(operator, float), np.diag(np.square(noise_std))
    gain = cov @ operator.T @ np.linalg.inv(operator @ cov @ operator.T + noise_cov)
    return mean + gain @ (y - operator @ mean), cov - gain @ operator @ cov


def gaussian_head(dim=3):
    """A head that is exactly a Gaussian, no standard one: its velocity is 0."""
    head = ScoreHeadConfig(width=8, depth=2, sampler=SAMPLER).build(dim, C, nnx.Rngs(0))
    head.affine = perturb(head.affine, 0.3)
    return head


def moments(head, context):
    mean = np.asarray(head.affine.inverse(jnp.zeros(head.dim), context)[0], float)
    root = np.asarray(jax.jacfwd(lambda z: head.affine.inverse(z, context)[0])(jnp.zeros(head.dim)), float)
    return mean, root @ root.T


@pytest.mark.slow
@pytest.mark.parametrize("noise_std", [0.05, 0.5])
def test_a_gaussian_head_and_a_linear_observation_are_exact(noise_std):
    """To the sampling error of 4000 draws: the mean within 8 % of the posterior sd, an entry of the covariance within 10 % of its sds."""
    head, context = gaussian_head(), noise(2, C)
    y, std = noise(2, 4, seed=5), jnp.full((2, 4), noise_std)
    x = guided_sample(head, context, KEY, N, lambda x, _: OPERATOR @ x, y, std)
    for i in range(2):
        mean, cov = conditioned(*moments(head, context[i]), OPERATOR, np.full(4, noise_std), np.asarray(y[i]))
        sd, draws = np.sqrt(np.diag(cov)), np.asarray(x[i], float)
        assert (abs(draws.mean(axis=0) - mean) / sd).max() < 0.08
        assert (abs(np.cov(draws.T) - cov) / np.outer(sd, sd)).max() < 0.1


@pytest.mark.slow
def test_an_observation_that_tells_nothing_changes_nothing():
    head, context = gaussian_head(), noise(2, C)
    head.net = perturb(head.net, 0.1)
    plain = head.sample(context, KEY, 50)
    for y, std in ((jnp.ones((2, 4)), 1e8), (jnp.full((2, 4), jnp.nan), 0.1)):
        given = guided_sample(head, context, KEY, 50, lambda x, _: OPERATOR @ x, y, jnp.full((2, 4), std))
        np.testing.assert_allclose(given, plain, atol=1e-5)
    told = guided_sample(head, context, KEY, 50, lambda x, _: OPERATOR @ x, jnp.ones((2, 4)), jnp.full((2, 4), 0.1))
    assert abs(told - plain).max() > 0.1


@pytest.mark.slow
def test_a_row_sees_its_own_observation_and_its_own_data():
    head, context = gaussian_head(), noise(2, C)
    y, rows = jnp.array([[0.5], [jnp.nan]]), jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    x = guided_sample(head, context, KEY, 500, lambda x, row: (row @ x)[None], y, jnp.full((2, 1), 0.01), rows)
    np.testing.assert_allclose(x[0, :, 0], 0.5, atol=0.05)
    np.testing.assert_allclose(x[1], head.sample(context, KEY, 500)[1], atol=1e-5)


def mixture_velocity(means, sds, weights):
    """v of a mixture of normals in one dimension: D from the normals that u may belong to."""
    means, sds, log_weights = jnp.array(means), jnp.array(sds), jnp.log(jnp.array(weights))

    def velocity(u, angle):
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        variance = jnp.square(cos * sds) + sin**2
        error = u[:, None] - cos * means
        share = jax.nn.softmax(log_weights - 0.5 * jnp.square(error) / variance - 0.5 * jnp.log(variance), axis=-1)
        d = (share * (means + cos * jnp.square(sds) / variance * error)).sum(axis=-1)
        return (cos * u - d) / sin

    return velocity


def draws_of(velocity, misfit, dim, n=N):
    points = spread(jax.vmap(misfit)(jnp.asarray(probes(dim), jnp.float32)))
    bent, angles = guide(velocity, misfit, points), EDM().angles(STEPS[SAMPLER])
    run = jax.jit(jax.vmap(lambda u, key: SAMPLERS[SAMPLER](bent, u, angles, key)))
    return np.asarray(run(noise(n, dim, seed=9), jax.random.split(KEY, n)), float)


@pytest.mark.slow
def test_a_gaussian_that_is_not_standard_is_guessed():
    """The velocity of N(0, s²), s = 1, 0.5, 0.3, is exact, and the inflation takes s = 1: means within 0.09 sd, sds within 6 %."""
    sds = jnp.asarray(WIDE)

    def velocity(u, angle):
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return u * sin * cos * (1 - sds**2) / (jnp.square(cos * sds) + sin**2)

    y = jnp.array([0.8, -0.3, 0.2])
    x = draws_of(velocity, lambda x: (x - y) / 0.2, 3)
    mean, cov = conditioned(np.zeros(3), np.diag(WIDE**2), np.eye(3), np.full(3, 0.2), np.asarray(y))
    sd = np.sqrt(np.diag(cov))
    assert (abs(x.mean(axis=0) - mean) / sd < 0.13).all() and (abs(x.std(axis=0) / sd - 1) < 0.09).all()


def test_two_modes_get_about_their_weights():
    """Within 0.1 of their probability, and each in its place and of its width."""
    velocity = mixture_velocity([-1.0, 1.0], [0.2, 0.2], [0.5, 0.5])
    for y in (0.2, 0.6):
        x = draws_of(velocity, lambda x, y=y: (x - y) / 0.7, 1)[:, 0]
        evidence = stats.norm([-1, 1], np.hypot(0.2, 0.7)).pdf(y)
        assert abs((x > 0).mean() - evidence[1] / evidence.sum()) < 0.1
        gain = 0.2**2 / (0.2**2 + 0.7**2)
        assert abs(x[x > 0].mean() - (1 + gain * (y - 1))) < 0.03 and abs(x[x > 0].std() - np.sqrt(1 - gain) * 0.2) < 0.03


@pytest.mark.slow
def test_more_new_numbers_than_the_spread_is_measured_with():
    """300 copies of one number have its exact posterior; 300 numbers of their own are guessed, to 0.08 sd and 8 %."""
    m = 300
    x = draws_of(lambda u, angle: jnp.zeros_like(u), lambda x: jnp.full(m, (x[0] - 0.7) / 4.0), 2)
    mean, cov = conditioned(np.zeros(2), np.eye(2), np.tile([1.0, 0.0], (m, 1)), np.full(m, 4.0), np.full(m, 0.7))
    sd = np.sqrt(np.diag(cov))
    assert (abs(x.mean(axis=0) - mean) / sd < 0.08).all() and (abs(x.std(axis=0) / sd - 1) < 0.06).all()
    x = draws_of(lambda u, angle: jnp.zeros_like(u), lambda x: (x - 0.7) / 0.5, m, n=200)
    assert abs(x.mean() - 0.7 / 1.25) < 0.1 * np.sqrt(0.2) and abs(x.std(axis=0).mean() / np.sqrt(0.2) - 1) < 0.1


@pytest.mark.slow
def test_a_posterior_answers_new_observations():
    simulator = LinearGaussian.random(3, 2)
    posterior = AmortizedConfig(IdentityEncoderConfig(), ScoreHeadConfig(width=8, depth=2, sampler=SAMPLER)).build(simulator, nnx.Rngs(0))
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(KEY, 256))
    posterior.calibrate(batch)
    seen = jax.tree.map(lambda leaf: leaf[:3], batch)._replace(target=None)
    plain, observe = np.asarray(posterior.sample(seen, KEY, N), float), lambda x: x[:2].sum()
    y = jnp.array([0.5, jnp.nan, 2.0])
    x = np.asarray(posterior.guided_sample(seen, KEY, N, observe, y, 0.3), float)
    np.testing.assert_allclose(x[1], plain[1], atol=1e-4)
    for i in (0, 2):
        mean, cov = conditioned(plain[i].mean(axis=0), np.cov(plain[i].T), np.array([[1.0, 1.0, 0.0]]), np.array([0.3]), np.array([y[i]]))
        sd = np.sqrt(np.diag(cov))
        assert (abs(x[i].mean(axis=0) - mean) / sd).max() < 0.1 and abs(x[i].std(axis=0) / sd - 1).max() < 0.05
    traced = jax.jit(lambda batch: posterior.guided_sample(batch, KEY, 5, observe, y, 0.3))(seen)
    np.testing.assert_allclose(traced, x[:, :5], atol=1e-3)


def test_requests_that_make_no_sense_are_refused():
    simulator = LinearGaussian.random(3, 2)
    build = lambda head: AmortizedConfig(IdentityEncoderConfig(), head).build(simulator, nnx.Rngs(0))  # noqa: E731
    seen = jax.vmap(simulator.sample)(jax.random.split(KEY, 2))._replace(target=None)
    with pytest.raises(NotImplementedError, match="expected a score head to guide, got 'regression'; do "):
        build(RegressionHeadConfig(width=8)).guided_sample(seen, KEY, 5, jnp.sum, jnp.ones(2), 0.1)
    posterior = build(ScoreHeadConfig(width=8, depth=1))
    for y, std in ((jnp.ones(3), 0.1), (jnp.ones(2), 0.0), (jnp.ones(2), jnp.nan), (jnp.array([1.0, jnp.inf]), 0.1)):
        with pytest.raises(ConfigError, match="^expected .*, got .*; do .*$"):
            posterior.guided_sample(seen, KEY, 5, jnp.sum, y, std)
