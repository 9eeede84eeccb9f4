"""The Gaussian analysis of periodic fields: its covariance by brute force, its mean beside the dense formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.fourdvarnet import ClimateConfig, ConvLSTMConfig, FourDVarNetConfig, IdentityPriorConfig, Layout
from vardax_flax.simulators import Tracks2D

STATE = (3, 4, 6)


def simulated(n, state=STATE, noise_std=0.3):
    """Correlated in time and along x, seen in a third of the places."""
    rng = np.random.default_rng(0)
    white = rng.normal(size=(n, *state))
    x = 2.0 + np.cumsum(white, axis=1) + 0.5 * np.roll(white, 1, axis=-1)
    mask = (rng.random(x.shape) < 0.3).astype(float)
    return Batch(jnp.asarray(np.where(mask > 0, x + noise_std * rng.normal(size=x.shape), 0)), jnp.asarray(mask), jnp.asarray(x))


def stationary_covariance(x):
    """Of samples `(n, days, h, w)`, averaged over all shifts in space."""
    _, _, height, width = x.shape
    shifted = [np.roll(x, (i, j), axis=(-2, -1)).reshape(len(x), -1) for i in range(height) for j in range(width)]
    return sum(rows.T @ rows / len(x) for rows in shifted) / len(shifted)


def calibrated(batch, steps, state=STATE):
    analysis = ClimateConfig(steps).build(Layout(state, "space", periodic=True))
    analysis.calibrate(batch)
    return analysis


@pytest.mark.parametrize("state", [STATE, (2, 5, 3), (1, 4, 4)])
def test_white_noise_becomes_fields_of_the_sample_covariance(x64, state):
    batch = simulated(40, state)
    analysis = calibrated(batch, 1, state)
    root = jax.jacobian(analysis._field)(jnp.zeros((*analysis.root.shape[:3], 2)))
    root = root.reshape(np.prod(state), -1)
    x = np.asarray(batch.target)
    np.testing.assert_allclose(root @ root.T, stationary_covariance(x - x.mean()), atol=1e-10)


def test_the_analysis_is_optimal_interpolation(x64):
    batch = simulated(60)
    analysis = calibrated(batch, 300)
    x, y, mask = (np.asarray(a) for a in (batch.target, batch.input[0], batch.mask[0]))
    cov, seen = stationary_covariance(x - x.mean()), mask.ravel() > 0
    noise = np.square((np.asarray(batch.input) - x)[np.asarray(batch.mask) > 0]).mean()
    gain = cov[:, seen] @ np.linalg.inv(cov[np.ix_(seen, seen)] + noise * np.eye(seen.sum()))
    expected = x.mean() + gain @ (y.ravel()[seen] - x.mean())
    np.testing.assert_allclose(analysis(batch)[0].ravel(), expected, atol=1e-8)


def test_nothing_observed_is_the_climate_and_hidden_values_do_not_count(x64):
    batch = simulated(20)
    analysis = calibrated(batch, 20)
    none = analysis(batch._replace(mask=jnp.zeros_like(batch.mask)))
    np.testing.assert_allclose(none, float(batch.target.mean()), atol=1e-12)
    hidden = batch._replace(input=jnp.where(batch.mask > 0, batch.input, jnp.nan))
    np.testing.assert_array_equal(analysis(hidden), analysis(batch))
    np.testing.assert_allclose(analysis(jax.tree.map(lambda a: a[3], batch)), analysis(batch)[3], atol=1e-12)


def test_the_covariance_of_a_known_field_is_found(x64):
    simulator = Tracks2D(size=8, days=3, length=1.5, correlation_time=4.0, drift=(-0.3, 0.7), target="window")
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), 4000))
    analysis = calibrated(batch, 100, (3, 8, 8))
    np.testing.assert_allclose(analysis.noise_std[...], simulator.noise_std, rtol=0.02)
    w = jnp.zeros((*analysis.root.shape[:3], 2))
    found, known = (jax.jacobian(f)(at).reshape(192, -1) for f, at in (
        (analysis._field, w), (simulator.field, jnp.zeros(simulator.control_shape))
    ))  # fmt: skip
    # 4000 windows of 64 places: the largest of 18432 errors of a few thousandths each
    np.testing.assert_allclose(found @ found.T, known @ known.T, atol=0.03)


@pytest.mark.parametrize(
    ("spoilt", "match"),
    [
        (lambda b: jax.tree.map(lambda a: a[:5], b), "at least 2 windows a day, 6"),
        (lambda b: b._replace(mask=jnp.zeros_like(b.mask)), "with noise"),
        (lambda b: b._replace(input=b.target), "with noise"),
    ],
)
def test_what_a_climate_cannot_be_learned_from_is_an_error(spoilt, match):
    with pytest.raises(ConfigError, match=match):
        calibrated(spoilt(simulated(20)), 1)


def test_a_solver_starts_from_it():
    simulator = Tracks2D(size=8, days=3, target="window")
    config = FourDVarNetConfig(
        prior=IdentityPriorConfig(), modulator=ConvLSTMConfig(4), periodic=True, n_solver_steps=2, climate=ClimateConfig(20)
    )
    assert from_dict(FourDVarNetConfig, to_dict(config)) == config
    batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(0), 32))
    model = config.build(simulator, nnx.Rngs(0))
    model.calibrate(batch)
    np.testing.assert_allclose(model(batch), model.climate(batch), atol=1e-4)  # untrained
    assert np.square(model(batch) - batch.target).mean() < 0.5 * np.square(batch.target).mean()
    with pytest.raises(ValueError, match="shape"):
        model(Batch(jnp.zeros((2, 3, 16, 16)), jnp.zeros((2, 3, 16, 16))))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClimateConfig(0),
        lambda: ClimateConfig().build(Layout(STATE, "space", periodic=False)),
        lambda: ClimateConfig().build(Layout((3, 4), "space", periodic=True)),
    ],
)
def test_what_has_no_climate_of_fields_is_an_error(make):
    with pytest.raises(ConfigError, match="expected"):
        make()
