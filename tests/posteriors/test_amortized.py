"""The amortized posterior as a distribution: shapes, normalisation in the units of x, the same numbers in every way of calling it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.perturb import noise, perturb
from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import AnalysisStep, Posterior
from vardax_flax.encoders import AnalysisEncoderConfig, IdentityEncoderConfig, InnovationEncoderConfig, MLPEncoderConfig
from vardax_flax.heads import FlowHeadConfig, RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig, AmortizedPosterior
from vardax_flax.simulators import LinearGaussian, Lorenz63, TwoMoons

KEY = jax.random.key(7)
B = 5
FLOW = FlowHeadConfig(layers=2, bins=5, width=8)
MLP = MLPEncoderConfig(features=4, width=8, depth=1)
WINDOW = Lorenz63(steps=20, missing_rate=0.2)
MODELS = {
    "two_moons": (TwoMoons(), AmortizedConfig(IdentityEncoderConfig(), FLOW)),
    "linear_gaussian": (LinearGaussian.random(3, 4), AmortizedConfig(MLP, RegressionHeadConfig(width=8))),
    "lorenz63": (WINDOW, AmortizedConfig(MLP, FLOW)),
    "lorenz63_innovation": (WINDOW, AmortizedConfig(InnovationEncoderConfig(MLP), RegressionHeadConfig("low_rank", 2, 8))),
    "lorenz63_analysis": (WINDOW, AmortizedConfig(AnalysisEncoderConfig(MLP), RegressionHeadConfig(width=8))),
}


models = mostly_slow("name", MODELS, quick=2)
gaussians = mostly_slow("name", ["linear_gaussian", "lorenz63_innovation"])  # log q is a quadratic of the state
with_background = mostly_slow("name", ["lorenz63_innovation", "lorenz63_analysis"])


@functools.cache
def simulate(name, n=256):
    return jax.jit(jax.vmap(MODELS[name][0].sample))(jax.random.split(jax.random.key(1), n))


@functools.cache
def model(name):
    simulator, config = MODELS[name]
    made = perturb(config.build(simulator, nnx.Rngs(0)), 0.1)
    made.calibrate(simulate(name))
    return made


def batch_of(name, n=B):
    """What is given to infer from: no target."""
    return jax.tree.map(lambda leaf: leaf[:n], simulate(name))._replace(target=None)


@models
def test_shapes_and_protocol(name):
    made, batch = model(name), batch_of(name)
    state = simulate(name).target.shape[1:]
    assert isinstance(made, Posterior)
    draws = made.sample(batch, KEY, 6)
    assert made(batch).shape == (B, *state)
    assert draws.shape == (B, 6, *state)
    assert made.log_prob(draws, batch).shape == (B, 6)
    np.testing.assert_allclose(made.log_prob(draws[:, 2], batch), made.log_prob(draws, batch)[:, 2], rtol=1e-4, atol=1e-3)


def test_an_element_without_a_batch_axis():
    name = "linear_gaussian"
    made, batch, state = model(name), batch_of(name), (3,)
    draws = made.sample(batch, KEY, 6)
    one = jax.tree.map(lambda leaf: leaf[0], batch)
    assert made(one).shape == state and made.sample(one, KEY, 2).shape == (2, *state) and made.log_prob(draws[0, 0], one).shape == ()
    np.testing.assert_allclose(made.sample(one, KEY, 6), draws[0], rtol=1e-4, atol=1e-4)


@models
def test_every_way_of_calling_gives_the_same_numbers(name):
    made, batch = model(name), batch_of(name)
    draws = made.sample(batch, KEY, 6)
    density = made.log_prob(draws, batch)
    np.testing.assert_allclose(jax.jit(lambda b: made.sample(b, KEY, 6))(batch), draws, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.jit(made.log_prob)(draws, batch), density, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(jax.jit(jax.vmap(made.log_prob))(draws, batch), density, rtol=1e-4, atol=1e-3)


@gaussians
def test_gradients_with_respect_to_the_state(name):
    """Central differences of a quadratic are exact."""
    made, batch = model(name), batch_of(name)
    np.testing.assert_allclose(jax.jit(made)(batch), made(batch), rtol=1e-3, atol=1e-3)
    draws = made.sample(batch, KEY, 6)
    score = jax.jit(jax.grad(lambda x: made.log_prob(x, batch).sum()))(draws)
    step = np.asarray(draws - draws.mean(axis=1, keepdims=True))
    moved = np.asarray(made.log_prob(draws + step, batch)) - np.asarray(made.log_prob(draws - step, batch))
    np.testing.assert_allclose(2 * (score * step).sum(-1), moved, atol=1e-3 * abs(moved).max())


@models
def test_the_loss_is_minus_the_mean_log_density(name):
    made, n = model(name), 32
    batch = jax.tree.map(lambda leaf: leaf[:n], simulate(name))
    loss, _ = jax.jit(made.loss)(batch, KEY)
    np.testing.assert_allclose(loss, -made.log_prob(batch.target, batch).mean(), rtol=1e-4)


@pytest.mark.slow
def test_a_density_on_a_grid_integrates_to_one():
    made, batch = model("two_moons"), batch_of("two_moons", 2)
    axis = np.linspace(-8, 8, 401)
    draws = np.asarray(made.sample(batch, KEY, 1000))
    center, spread = draws.mean(1, keepdims=True), draws.std(1, keepdims=True)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = np.exp(np.asarray(made.log_prob(center + spread * grid, batch), np.float64))
    np.testing.assert_allclose(density.sum(-1) * (axis[1] - axis[0]) ** 2 * spread.prod((1, 2)), 1, atol=2e-3)


@models
def test_the_density_is_normalised_in_the_units_of_the_state(name):
    """E_g[q / g] = 1 for a Gaussian g a little wider than the draws."""
    made, batch, n = model(name), batch_of(name, 2), 20000
    draws = np.asarray(made.sample(batch, KEY, 2000), np.float64)
    mean, chol = draws.mean(1), np.linalg.cholesky([1.7 * np.cov(d.T) for d in draws])
    white = np.asarray(noise(n, mean.shape[1]), np.float64)
    x = mean[:, None] + np.einsum("bij,nj->bni", chol, white)
    log_g = -0.5 * (white**2 + np.log(2 * np.pi)).sum(-1) - np.log(np.diagonal(chol, axis1=1, axis2=2)).sum(-1)[:, None]
    weight = np.exp(np.asarray(made.log_prob(x, batch), np.float64) - log_g)
    error = weight.std(1) / np.sqrt(n)
    assert (error < 0.03).all()
    assert (abs(weight.mean(1) - 1) < 5 * error).all()


@models
def test_sizes_of_a_call_change_nothing(name):
    made = model(name)
    whole = np.asarray(made.sample(batch_of(name, 8), KEY, 128))
    tolerance = 1e-5 * max(1, abs(whole).max())
    np.testing.assert_allclose(made.sample(batch_of(name, 8), KEY, 100), whole[:, :100], atol=tolerance)
    np.testing.assert_allclose(made.sample(batch_of(name, 5), KEY, 100), whole[:5, :100], atol=tolerance)
    assert (made.sample(batch_of(name, 8), jax.random.key(8), 128) != whole).all()


def test_lists_and_integers_are_taken():
    made = model("two_moons")
    lists = Batch([[0.0, 1.0], [0.5, 0.0]], [[1, 1], [1, 1]])
    assert made.sample(lists, KEY, 3).shape == (2, 3, 2)
    assert made.log_prob([[0, 0], [1, 1]], lists).shape == (2,)


def test_the_head_must_be_the_one_of_the_configuration():
    simulator, config = MODELS["two_moons"]
    encoder = config.encoder.build(simulator.spec, nnx.Rngs(0))
    head = RegressionHeadConfig(width=8).build(2, encoder.features, nnx.Rngs(0))
    with pytest.raises(ConfigError, match="expected a 'flow' head .*, got 'regression'; do "):
        AmortizedPosterior(encoder, head, config, simulator.spec)
    with pytest.raises(ConfigError, match="expected a spec with a target .*, got None; do "):
        AmortizedPosterior(encoder, config.head.build(2, 4, nnx.Rngs(0)), config, simulator.spec._replace(target=None))


@with_background
def test_an_analysis_step_uses_its_forecast(name):
    made, batch = model(name), batch_of(name)
    step = made.as_analysis_step()
    assert isinstance(step, AnalysisStep)
    obs = np.where(batch.mask == 1, batch.input, np.nan)
    analysis = step(batch.background, obs)
    assert analysis.shape == batch.background.shape
    np.testing.assert_allclose(analysis, made(batch), rtol=1e-5, atol=1e-5)
    assert (abs(step(batch.background + 0.5, obs) - analysis).max(-1) > 1e-3).all()
    assert (abs(step(batch.background, obs + 0.5) - analysis).max(-1) > 1e-4).all()
    np.testing.assert_allclose(jax.jit(step)(batch.background, obs), analysis, rtol=1e-3, atol=1e-2)


def test_an_analysis_step_refuses_what_it_cannot_honour():
    step, batch = model("lorenz63_innovation").as_analysis_step(), batch_of("lorenz63_innovation")
    for name in ("obs_op", "obs_err_cov"):
        with pytest.raises(ValueError, match=f"expected {name}=None .*, got .*; do "):
            step(batch.background, batch.input, **{name: 1.0})
    with pytest.raises(ValueError, match="expected finite values in `input` where observed, got inf .*; do "):
        step(batch.background, batch.input.at[0, 0, 0].set(jnp.inf))
    with pytest.raises(ConfigError, match="expected a model that conditions on a background, got one trained without; do "):
        model("two_moons").as_analysis_step()


@with_background
def test_a_background_that_is_missing_or_broken_is_refused(name):
    made, batch = model(name), batch_of(name)
    x = batch.background
    for background, words in ((None, "got None"), (x[:, :2], r"got \(5, 2\)"), (x.at[1, 0].set(jnp.nan), "nan")):
        with pytest.raises(ValueError, match=f"^expected .*`background`.*{words}.*; do .*$"):
            made.sample(batch._replace(background=background), KEY, 2)
