"""The benchmark tasks against closed forms, other integrators and draws made without this library."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, signal, stats

from vardax_flax.simulators import (
    SIR,
    SLCP,
    BernoulliGLM,
    BernoulliGLMRaw,
    GaussianLinearUniform,
    GaussianMixture,
    LotkaVolterra,
    SLCPDistractors,
)
from vardax_flax.simulators.observe import fully_observed
from vardax_flax.simulators.sbi import bernoulli_glm

DATA = Path(__file__).resolve().parent.parent / "data"


@functools.cache
def load(name):
    with np.load(DATA / name, allow_pickle=False) as archive:
        return dict(archive)


@functools.partial(jax.jit, static_argnums=(0, 4))
def metropolis(simulator, theta, x, key, steps, width):
    """So many steps from each draw; whatever the width, draws of the posterior stay draws of the posterior."""

    def log_joint(theta):
        element = fully_observed(x, theta)
        return simulator.log_prior(theta, element) + simulator.log_likelihood(theta, element)

    def step(carry, key):
        theta, value = carry
        key_move, key_accept = jax.random.split(key)
        proposal = theta + width * jax.random.normal(key_move, theta.shape)
        there = jax.vmap(log_joint)(proposal)
        accept = jnp.log(jax.random.uniform(key_accept, there.shape)) < there - value
        return (jnp.where(accept[:, None], proposal, theta), jnp.where(accept, there, value)), accept.mean()

    (theta, _), accepted = jax.lax.scan(step, (theta, jax.vmap(log_joint)(theta)), jax.random.split(key, steps))
    return theta, accepted.mean()


def assert_stationary(simulator, x, draws, width):
    moved, accepted = metropolis(simulator, jnp.asarray(draws), jnp.asarray(x), jax.random.key(0), 200, width)
    assert 0.02 < accepted < 0.98
    draws, moved = np.asarray(draws), np.asarray(moved)
    # halves of different chains, so that the two samples are independent
    half = len(draws) // 2
    assert min(stats.ks_2samp(a, b).pvalue for a, b in zip(draws[:half].T, moved[half:].T, strict=True)) > 1e-3
    assert (moved != draws).any(axis=1).mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("index", range(2))
def test_slcp_has_the_reference_posterior(index, x64):
    data = load("slcp.npz")
    assert_stationary(SLCP(), data["observation"][index].astype(float), data["reference_samples"][index].astype(float), 0.1)


CUT = [(GaussianLinearUniform(), 0.9, 0.1), (GaussianMixture(), 9.5, 0.3)]


@pytest.mark.slow
@pytest.mark.parametrize(("simulator", "centre", "width"), CUT, ids=["uniform", "mixture"])
def test_exact_draws_follow_the_posterior_where_the_box_cuts_it(simulator, centre, width, x64):
    x = jnp.full(simulator.spec.input.shape, centre)
    draws = simulator.posterior_samples(x, jax.random.key(1), 10_000)
    assert_stationary(simulator, x, draws, width)
    limit = 1.0 if centre < 1 else 10.0
    assert float(jnp.abs(draws).max()) <= limit and float(draws.max()) > 0.999 * limit


def test_slcp_density_and_draws(x64):
    simulator, theta = SLCP(), jnp.array([0.7, -2.9, -1.0, -0.9, 0.6])
    s1, s2, rho = 1.0, 0.81, np.tanh(0.6)
    normal = stats.multivariate_normal([0.7, -2.9], np.array([[s1**2, rho * s1 * s2], [rho * s1 * s2, s2**2]]) + 1e-6 * np.eye(2))
    x = np.random.default_rng(0).normal(size=(4, 2))
    element = fully_observed(jnp.asarray(x.ravel()), theta)
    np.testing.assert_allclose(simulator.log_likelihood(theta, element), normal.logpdf(x).sum(), rtol=1e-10)
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), 2000))
    t, x = np.asarray(batch.target), np.asarray(batch.input).reshape(2000, 4, 2)
    first = (x[..., 0] - t[:, None, 0]) / np.sqrt(t[:, None, 2] ** 4 + 1e-6)
    assert stats.kstest(first.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest((t.ravel() + 3) / 6, "uniform").pvalue > 1e-3


def test_slcp_is_precise_where_the_scales_vanish_and_the_correlation_is_one():
    """In single precision, at corners of the prior."""
    simulator = SLCP()
    value = jax.jit(jax.value_and_grad(simulator.log_likelihood))
    for corner in ([0, 0, 1e-3, 1e-3, 3], [0, 0, 0, 3, -3], [1, 1, 3, 0, 3]):
        theta = jnp.array(corner, jnp.float32)
        x = jnp.tile(theta[:2], 4) + 1e-4
        got, gradient = value(theta, fully_observed(x, theta))
        assert np.isfinite(gradient).all()
        with jax.enable_x64(True):
            exact = simulator.log_likelihood(jnp.asarray(theta, float), fully_observed(jnp.asarray(x, float), theta))
        np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_distractors_hide_the_points_and_say_nothing(x64):
    simulator = SLCPDistractors()
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), 4000))
    assert batch.input.shape == (4000, 100)
    points = jax.vmap(simulator.informative)(batch.input)
    inside = np.asarray(points).reshape(4000, 4, 2)[..., 0].mean(axis=1)
    assert np.corrcoef(inside, batch.target[:, 0])[0, 1] > 0.5
    rank = stats.rankdata(np.asarray(batch.input), axis=0)
    correlation = np.abs(np.corrcoef(rank.T, stats.rankdata(np.asarray(batch.target), axis=0).T)[:100, 100:]).max(axis=1)
    assert (correlation > 0.3).sum() == 8
    quiet = np.sort(correlation)[:92]
    assert quiet.max() < stats.norm.isf(1e-7) / np.sqrt(4000)
    one = jax.tree.map(lambda leaf: leaf[0], batch)
    seen = simulator.log_likelihood(one.target, one)
    np.testing.assert_allclose(seen, SLCP().log_likelihood(one.target, fully_observed(points[0], one.target)))


def test_glm_design_and_statistics_are_those_of_the_benchmark(x64):
    data = load("bernoulli_glm_design.npz")
    np.testing.assert_allclose(bernoulli_glm.design_matrix(), data["design_matrix"], atol=1e-6)
    keys = jax.random.split(jax.random.key(0), 100)
    raw, summed = (jax.jit(jax.vmap(task.sample))(keys) for task in (BernoulliGLMRaw(), BernoulliGLM()))
    np.testing.assert_array_equal(raw.target, summed.target)
    for spikes, statistics in zip(np.asarray(raw.input), np.asarray(summed.input), strict=True):
        triggered = signal.correlate(np.pad(spikes, 8), data["stimulus"], mode="valid")[-9:]
        np.testing.assert_allclose(statistics, [spikes.sum(), *triggered], atol=1e-5)


def test_glm_densities(x64):
    raw, summed = BernoulliGLMRaw(), BernoulliGLM()
    both = [jax.tree.map(lambda leaf: leaf[0], jax.vmap(task.sample)(jax.random.split(jax.random.key(3), 1))) for task in (raw, summed)]
    thetas = jax.random.normal(jax.random.key(1), (20, 10))
    a, b = (jax.vmap(task.log_likelihood, (0, None))(thetas, one) for task, one in zip((raw, summed), both, strict=True))
    np.testing.assert_allclose(a, b, rtol=1e-10)  # the number of spike trains with these statistics is left out
    rate = 1 / (1 + np.exp(-bernoulli_glm.design_matrix() @ np.asarray(thetas[0])))
    np.testing.assert_allclose(a[0], stats.bernoulli(rate).logpmf(np.asarray(both[0].input).astype(int)).sum(), rtol=1e-10)
    difference = np.eye(9) - np.eye(9, k=-1)
    f = difference @ difference + np.diag(np.sqrt(np.arange(9) / 9))
    precision = np.zeros((10, 10))
    precision[0, 0], precision[1:, 1:] = 0.5, f.T @ f
    expected = stats.multivariate_normal(np.zeros(10), np.linalg.inv(precision)).logpdf(np.asarray(thetas[0]))
    np.testing.assert_allclose(raw.log_prior(thetas[0], both[0]), expected, rtol=1e-8)


FASTEST, SLOWEST = [2.5, 0.05], [0.08, 0.25]


@pytest.mark.parametrize("theta", [[0.4, 0.125], FASTEST, SLOWEST])
def test_the_epidemic_agrees_with_another_integrator(theta, x64):
    beta, gamma = theta
    times = np.arange(0, 154, 17)
    flow = lambda t, s: [-beta * s[0] * s[1], beta * s[0] * s[1] - gamma * s[1]]  # noqa: E731
    other = integrate.solve_ivp(flow, (0, 153), [1 - 1e-6, 1e-6], t_eval=times, rtol=1e-10, atol=1e-16)
    np.testing.assert_allclose(SIR().infected(jnp.array(theta)), other.y[1], rtol=1e-4, atol=1e-12)


@pytest.mark.slow
def test_epidemic_densities(x64):
    simulator, theta = SIR(), jnp.array([0.5, 0.1])
    share = np.asarray(simulator.infected(theta))
    count = np.array([0, 0, 1, 30, 200, 700, 300, 100, 20, 1])
    element = fully_observed(jnp.asarray(count, float), theta)
    np.testing.assert_allclose(simulator.log_likelihood(theta, element), stats.binom.logpmf(count, 1000, share).sum(), rtol=1e-8)
    prior = stats.lognorm(0.5, scale=0.4).logpdf(0.5) + stats.lognorm(0.2, scale=0.125).logpdf(0.1)
    np.testing.assert_allclose(simulator.log_prior(theta, element), prior, rtol=1e-10)
    assert simulator.log_prior(jnp.array([-0.1, 0.1]), element) == -jnp.inf
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), 500))
    count, shares = np.asarray(batch.input), np.asarray(jax.vmap(simulator.infected)(batch.target))
    assert (count == count.round()).all() and count.min() >= 0 and count.max() <= 1000
    spread = np.sqrt(1000 * shares * (1 - shares))
    large = 1000 * shares * (1 - shares) > 20
    white = ((count - 1000 * shares) / np.maximum(spread, 1e-9))[large]
    assert abs(white.mean()) < 4 / np.sqrt(white.size) and abs(white.std() - 1) < 0.1


@pytest.mark.parametrize("theta", [[0.88, 0.05, 0.88, 0.05], [2.5, 0.02, 2.0, 0.15], [0.4, 0.2, 0.4, 0.01]])
def test_predators_and_prey_agree_with_another_integrator(theta, x64):
    alpha, beta, gamma, delta = theta
    flow = lambda t, s: [alpha - beta * np.exp(s[1]), delta * np.exp(s[0]) - gamma]  # noqa: E731
    other = integrate.solve_ivp(flow, (0, 19), [np.log(30), 0.0], t_eval=2.1 * np.arange(10), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(np.log(LotkaVolterra().predict(jnp.array(theta))), other.y.ravel(), atol=2e-4)


def test_predator_prey_densities(x64):
    simulator = LotkaVolterra()
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), 300))
    clean = jax.jit(jax.vmap(simulator.predict))(batch.target)
    white = np.asarray(jnp.log(batch.input / clean) / 0.1)
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-3
    one = jax.tree.map(lambda leaf: leaf[0], batch)
    expected = stats.lognorm(0.1, scale=np.asarray(clean[0])).logpdf(np.asarray(one.input)).sum()
    np.testing.assert_allclose(simulator.log_likelihood(one.target, one), expected, rtol=1e-8)
    prior = stats.lognorm(0.5, scale=np.exp([-0.125, -3, -0.125, -3])).logpdf(np.asarray(one.target)).sum()
    np.testing.assert_allclose(simulator.log_prior(one.target, one), prior, rtol=1e-10)
