"""Windows of chaotic systems: what is observed when, priors, the attractor, and fields out of range."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError
from vardax_flax.simulators import Lorenz63, Lorenz63Climatology, Lorenz96, Lorenz96Climatology, lorenz63, lorenz96

WINDOWS = [Lorenz63, Lorenz63Climatology, Lorenz96, Lorenz96Climatology]
windows = pytest.mark.parametrize("cls", WINDOWS)


def many(function, n, seed=0):
    return jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), n))


def test_defaults():
    simulator = Lorenz63()
    assert (simulator.dt, simulator.steps, simulator.observe_every_step, simulator.observe_every_site) == (0.01, 100, 10, 1)
    assert (simulator.noise_std, simulator.missing_rate, simulator.background_std) == (math.sqrt(2), 0.0, 2.0)
    assert (simulator.sigma, simulator.rho, simulator.beta) == (10.0, 28.0, 8 / 3)
    ring = Lorenz96()
    assert (ring.n_sites, ring.forcing, ring.dt, ring.steps, ring.observe_every_step, ring.observe_every_site) == (40, 8.0, 0.05, 8, 2, 2)
    assert (ring.noise_std, ring.missing_rate, ring.background_std) == (1.0, 0.0, 1.0)


@windows
def test_prediction_is_the_trajectory_seen_by_the_instrument(cls, x64):
    simulator = cls(steps=12, observe_every_step=3, observe_every_site=2)
    x0 = simulator.draw_attractor(jax.random.key(0))
    trajectory = simulator.trajectory(x0)
    assert trajectory.shape == (13, x0.shape[0])
    np.testing.assert_array_equal(trajectory[0], x0)
    expected = trajectory[jnp.array([3, 6, 9, 12])][:, ::2]
    np.testing.assert_allclose(simulator.predict(x0), expected, rtol=1e-12)
    assert simulator.spec.input.shape == expected.shape


@windows
def test_the_background_belongs_to_the_kind_with_a_density(cls):
    element = cls().sample(jax.random.key(0))
    assert (element.background is None) == cls.kind.endswith("climatology")


@mostly_slow("simulator", [Lorenz63(background_std=0.7), Lorenz96(background_std=0.3)])
def test_prior_draws_follow_the_prior_density(simulator, x64):
    batch = many(simulator.sample, 512)
    white = np.asarray(batch.target - batch.background) / simulator.background_std
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-3
    log_prior = jax.vmap(simulator.log_prior)(batch.target, batch)
    expected = stats.norm.logpdf(batch.target, batch.background, simulator.background_std).sum(axis=-1)
    np.testing.assert_allclose(log_prior, expected, rtol=1e-12)


@mostly_slow("simulator", [Lorenz63(missing_rate=0.4), Lorenz96(missing_rate=0.4)])
def test_log_likelihood_counts_the_observed_values(simulator, x64):
    batch = many(simulator.sample, 16)
    clean = jax.jit(jax.vmap(simulator.predict))(batch.target)
    terms = stats.norm.logpdf(batch.input, clean, simulator.noise_std) * np.asarray(batch.mask)
    np.testing.assert_allclose(jax.jit(jax.vmap(simulator.log_likelihood))(batch.target, batch), terms.sum(axis=(1, 2)), rtol=1e-12)


def test_a_trajectory_that_explodes_explains_nothing_that_was_seen():
    simulator = Lorenz63()
    element = jax.jit(simulator.sample)(jax.random.key(0))
    value = jax.jit(simulator.log_likelihood)
    assert value(jnp.full(3, 1e4), element) == -np.inf
    assert value(jnp.full(3, 1e4), element._replace(mask=jnp.zeros_like(element.mask))) == 0
    # neither a bad observation nor a bad state passes for that
    assert np.isnan(value(element.target, element._replace(input=jnp.full_like(element.input, jnp.nan))))
    assert np.isnan(value(jnp.full(3, jnp.nan), element))
    # and one such state among others leaves their gradients alone
    states = jnp.stack([element.target, jnp.full(3, 1e4)])

    def likely(states, y):
        return jnp.exp(jax.vmap(lambda x: simulator.log_likelihood(x, element._replace(input=y)))(states)).sum()

    gradient = jax.jit(jax.grad(likely, argnums=(0, 1)))
    (by_state, by_y), (alone, by_y_alone) = gradient(states, element.input), gradient(states[:1], element.input)
    np.testing.assert_allclose(by_state, jnp.concatenate([alone, jnp.zeros((1, 3))]), rtol=1e-4)
    np.testing.assert_allclose(by_y, by_y_alone, rtol=1e-4)


def test_lorenz63_tendency_by_hand(x64):
    np.testing.assert_allclose(Lorenz63().tendency(jnp.array([1.0, 2.0, 3.0])), [10.0, 23.0, -6.0])


def test_lorenz96_tendency_by_hand(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=7)
    expected = [(x[(i + 1) % 7] - x[i - 2]) * x[i - 1] - x[i] + 5.0 for i in range(7)]
    np.testing.assert_allclose(Lorenz96(n_sites=7, forcing=5.0).tendency(jnp.asarray(x)), expected, rtol=1e-12)


@mostly_slow(("cls", "dt"), [(Lorenz63Climatology, 0.01), (Lorenz96Climatology, 0.05)])
def test_draws_have_the_climate_of_a_long_independent_run(cls, dt):
    draws = np.asarray(many(cls().draw_attractor, 8192), np.float64)
    simulator = cls(dt=dt, steps=8000)
    long_run = np.asarray(jax.jit(simulator.trajectory)(simulator.draw_attractor(jax.random.key(5)) + 1.0), np.float64)[500:]
    if cls is Lorenz96Climatology:  # the sites are exchangeable
        draws, long_run = draws.reshape(-1, 1), long_run.reshape(-1, 1)
        np.testing.assert_allclose([draws.mean(), draws.std()], [2.34, 3.64], atol=0.03)  # published climate for F = 8
    else:
        np.testing.assert_allclose(draws.mean(axis=0), [0.0, 0.0, 23.55], atol=0.35)
    scale = long_run.std(axis=0)
    np.testing.assert_allclose(draws.std(axis=0) / scale, 1.0, atol=0.06)
    quantiles = np.linspace(0.05, 0.95, 7)
    difference = np.quantile(draws[:, -1], quantiles) - np.quantile(long_run[:, -1], quantiles)
    assert np.abs(difference).max() < 0.15 * scale[-1]


def test_draws_are_continuous_along_the_orbits(x64):
    simulator = Lorenz63Climatology()
    bank = simulator.attractor()
    draws = np.asarray(many(simulator.draw_attractor, 512))
    assert len(np.unique(draws, axis=0)) == 512
    assert not np.isin(draws[:, 0], bank[:, 0]).any()
    # orbit by orbit the bank is one trajectory: its states are GAP apart
    orbit = bank.reshape(256, 256, 3)[:, 7]
    finer = dataclasses.replace(simulator, dt=0.0125, steps=8, observe_every_step=8)
    np.testing.assert_allclose(jax.vmap(lambda x: finer.trajectory(x)[-1])(jnp.asarray(orbit[:-1])), orbit[1:], atol=1e-8)


@mostly_slow(("module", "simulator"), [(lorenz63, Lorenz63(rho=27.5)), (lorenz96, Lorenz96(n_sites=12, forcing=7.5))])
def test_the_attractor_may_first_be_touched_inside_a_trace(module, simulator):
    module._bank.cache_clear()
    inside = jax.jit(simulator.draw_attractor)(jax.random.key(0))
    outside = simulator.draw_attractor(jax.random.key(0))
    np.testing.assert_allclose(inside, outside, rtol=1e-4, atol=1e-4)
    assert simulator.attractor() is simulator.attractor()
    assert not simulator.attractor().flags.writeable


def test_the_bank_is_bounded_for_long_rings():
    bank = Lorenz96(n_sites=1024).attractor()
    assert bank.shape == (16 * 256, 1024) and np.isfinite(bank).all()


def test_single_and_double_precision_draw_the_same_states():
    simulator = Lorenz63Climatology()
    assert simulator.draw_attractor(jax.random.key(0)).dtype == np.float32
    with jax.enable_x64(True):
        assert simulator.draw_attractor(jax.random.key(0)).dtype == np.float64


@windows
@pytest.mark.parametrize(
    "bad",
    [{"dt": 0.0}, {"dt": math.inf}, {"steps": 7}, {"steps": 0}, {"observe_every_step": 0}, {"observe_every_site": -1}, {"noise_std": 0.0}],
)
def test_fields_out_of_range_are_one_line_errors(cls, bad):
    with pytest.raises(ConfigError, match=r"^expected [^\n]*, got [^\n]*; do [^\n]*$"):
        cls(**{"steps": 10, "observe_every_step": 2} | bad)


@pytest.mark.parametrize(
    ("cls", "bad"),
    [
        (Lorenz63, {"background_std": 0.0}),
        (Lorenz63, {"sigma": -1.0}),
        (Lorenz96, {"n_sites": 3}),
        (Lorenz96, {"forcing": math.nan}),
        (Lorenz96, {"background_std": -1.0}),
    ],
)
def test_parameters_out_of_range_are_one_line_errors(cls, bad):
    with pytest.raises(ConfigError, match=r"^expected [^\n]*, got [^\n]*; do [^\n]*$"):
        cls(**bad)


def test_a_system_that_diverges_is_an_error():
    with pytest.raises(ConfigError, match="bounded attractor"):
        Lorenz96Climatology(forcing=1e4).sample(jax.random.key(0))
