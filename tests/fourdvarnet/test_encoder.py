"""A posterior around the analysis of a learned solver: the cost with a background, the map, the context, what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.encoders import AnalysisEncoderConfig, MLPEncoderConfig
from vardax_flax.fourdvarnet import (
    ClimateConfig,
    ConvLSTMConfig,
    FourDVarNetConfig,
    IdentityModulatorConfig,
    IdentityPriorConfig,
    Layout,
    NewtonConfig,
    SolvedAnalysisEncoderConfig,
    SolverEncoderConfig,
    SolverLoss,
)
from vardax_flax.fourdvarnet.encoder import curvature
from vardax_flax.heads import RegressionHeadConfig, ScoreHeadConfig
from vardax_flax.nn import UNetConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import Lorenz96, Tracks2D
from vardax_flax.training import train_step

RING = Lorenz96(n_sites=10, steps=4, missing_rate=0.2)
AROUND = FourDVarNetConfig(
    prior=IdentityPriorConfig(), modulator=ConvLSTMConfig(4), periodic=True, n_solver_steps=2, alpha=0.3, first_guess="background"
)
SQUARE = Tracks2D(size=8, days=3, target="window")
MAPPED = FourDVarNetConfig(
    prior=IdentityPriorConfig(), modulator=ConvLSTMConfig(4, downsample=2), periodic=True, n_solver_steps=2, climate=ClimateConfig(8)
)
CASES = {"ring": (RING, AROUND, (10,)), "square": (SQUARE, MAPPED, (8, 8))}


def windows(simulator, n=16, seed=0):
    return jax.vmap(simulator.sample)(jax.random.split(jax.random.key(seed), n))


def located(name, head=None, weight=1.0):
    simulator, solver, grid = CASES[name]
    head = head or ScoreHeadConfig(steps=4, net=UNetConfig(grid=grid, channels=(4, 8), depth=(0, 1)))
    posterior = AmortizedConfig(encoder=SolverEncoderConfig(solver, weight), head=head).build(simulator, nnx.Rngs(0))
    posterior.calibrate(windows(simulator, 64))
    return simulator, posterior


def test_a_solver_with_a_background_descends_the_log_posterior(x64):
    model = AROUND.build(RING, nnx.Rngs(0))
    batch = windows(RING, 2000)
    model.calibrate(batch)
    units = float((model.scale.std[...] / model.obs_scale.std[...]) ** 2)
    exact = RING.noise_std**2 / RING.background_std**2 * units
    np.testing.assert_allclose(model.background_weight[...], exact, rtol=0.05)  # from thousands of errors
    model.background_weight[...] = jnp.asarray(exact)
    few = jax.tree.map(lambda a: a[:5], batch)
    x = few.target + 0.1
    gradient = jax.vmap(jax.grad(lambda x, element: 0.5 * jnp.square(RING.residual(x, element)).sum()))(x, few)
    factor = 2 * RING.noise_std**2 / model.obs_scale.std[...] ** 2 * model.scale.std[...]
    np.testing.assert_allclose(model.gradient(model.scale(x), few), factor * gradient, rtol=1e-8, atol=1e-10)


def test_plain_descent_with_a_background_finds_the_mode(x64):
    config = FourDVarNetConfig(
        prior=IdentityPriorConfig(), modulator=IdentityModulatorConfig(), n_solver_steps=3000, alpha=0.05, first_guess="background"
    )
    model = config.build(RING, nnx.Rngs(0))
    batch = windows(RING, 4000)
    model.calibrate(batch)
    few = jax.tree.map(lambda a: a[:3], batch)
    x = model(few._replace(target=None))
    gradient = jax.vmap(jax.grad(lambda x, element: 0.5 * jnp.square(RING.residual(x, element)).sum()))(x, few)
    start = jax.vmap(jax.grad(lambda x, element: 0.5 * jnp.square(RING.residual(x, element)).sum()))(few.background, few)
    assert np.abs(gradient).max() < 0.05 * np.abs(start).max()


def test_the_curvature_is_that_of_the_observations(x64):
    model = AROUND.build(RING, nnx.Rngs(0))
    batch = windows(RING, 3)
    model.calibrate(windows(RING, 50))
    x = model.scale(batch.target)
    jacobian = jax.vmap(jax.jacobian(lambda x: model.predict(x[None])[0]))(x)
    expected = (batch.mask[..., None] * jnp.square(jacobian)).sum(axis=(1, 2))
    np.testing.assert_allclose(curvature(model, x, batch), expected, rtol=1e-9)
    many = Lorenz96(n_sites=72, steps=4)
    model, batch = AROUND.build(many, nnx.Rngs(0)), windows(many, 3)
    model.calibrate(batch)
    x = model.scale(batch.target)
    jacobian = jax.vmap(jax.jacobian(lambda x: model.predict(x[None])[0]))(x)
    expected = jnp.square(jacobian).sum(axis=(1, 2))
    assert np.corrcoef(curvature(model, x, batch).ravel(), expected.ravel())[0, 1] > 0.7  # eight random probes


@mostly_slow("name", CASES)
def test_the_map_is_a_bijection_around_the_analysis(x64, name):
    simulator, posterior = located(name)
    encoder, batch = posterior.encoder, windows(simulator, 3, seed=1)
    found = encoder.locate(batch)
    assert found.context.shape == (3, encoder.features)
    z, log_det = encoder.to_z(batch.target, batch, found.frame)
    np.testing.assert_allclose(encoder.to_x(z, batch, found.frame), batch.target, atol=1e-12)
    np.testing.assert_allclose(encoder.to_x(jnp.zeros_like(z), batch, found.frame), found.frame, atol=1e-12)
    flat = lambda x: encoder.to_z(x.reshape(batch.target[:1].shape), batch, found.frame[:1])[0].ravel()  # noqa: E731
    slope = jnp.linalg.slogdet(jax.jacobian(flat)(batch.target[0].ravel()))[1]
    np.testing.assert_allclose(log_det, slope, rtol=1e-10)
    draws = jnp.stack([batch.target, batch.target + 1], axis=1)
    np.testing.assert_allclose(encoder.to_x(encoder.to_z(draws, batch, found.frame)[0], batch, found.frame), draws, atol=1e-12)


@mostly_slow("name", CASES, quick=["square"])
def test_head_and_solver_are_trained_together(name):
    simulator, posterior = located(name)
    batch, key = windows(simulator, 16, seed=2), jax.random.key(3)
    solver = lambda: nnx.state(posterior.encoder.solver, nnx.Param)  # noqa: E731
    before = jax.tree.map(jnp.array, solver())
    loss, terms = posterior.loss(batch, key)
    error = (batch.target - posterior.encoder.locate(batch).frame) / posterior.encoder.scale[...]
    np.testing.assert_allclose(terms["penalty"], 0.5 * np.square(error).reshape(16, -1).sum(axis=-1).mean(), rtol=1e-4)
    optimizer = nnx.Optimizer(posterior, optax.adam(3e-3), wrt=nnx.Param)
    losses = [float(train_step(posterior, optimizer, batch, key)[0]) for _ in range(30)]
    assert losses[-1] < losses[0] and np.isfinite(losses).all()
    assert posterior.loss(batch, key)[1]["penalty"] < terms["penalty"]
    changed = jax.tree.map(lambda a, b: bool(jnp.abs(a - b).max() > 0), before, solver())
    assert any(jax.tree.leaves(changed))
    draws = posterior.sample(batch._replace(target=None), jax.random.key(0), 3)
    assert draws.shape == (16, 3, *batch.target.shape[1:]) and bool(jnp.isfinite(draws).all())
    hidden = batch._replace(target=None, input=jnp.where(batch.mask > 0, batch.input, jnp.nan))
    np.testing.assert_allclose(posterior.sample(hidden, jax.random.key(0), 3), draws, rtol=1e-4, atol=1e-4)


def test_channels_of_the_calibration_errors_are_uncorrelated():
    simulator, posterior = located("square")
    batch = windows(simulator, 64)  # what it was calibrated with
    encoder = posterior.encoder
    z = np.asarray(encoder.to_z(batch.target, batch, encoder.locate(batch).frame)[0]).reshape(-1, 3)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(3), atol=1e-2)


def test_without_weight_and_with_any_head():
    simulator, posterior = located("ring", RegressionHeadConfig(covariance="diagonal"), weight=0.0)
    batch = windows(simulator, 4)
    assert float(posterior.loss(batch, jax.random.key(0))[1]["penalty"]) == 0
    assert posterior.log_prob(batch.target, batch._replace(target=None)).shape == (4,)
    config = SolverEncoderConfig(AROUND, 0.5)
    assert from_dict(AmortizedConfig, to_dict(AmortizedConfig(encoder=config))).encoder == config


@pytest.mark.slow
def test_a_solver_that_begins_an_analysis_is_trained_by_its_own_error_alone():
    around = AnalysisEncoderConfig(MLPEncoderConfig(features=8, width=8))
    config = AmortizedConfig(SolvedAnalysisEncoderConfig(AROUND, around), RegressionHeadConfig("diagonal", width=8))
    assert from_dict(AmortizedConfig, to_dict(config)) == config
    posterior = config.build(RING, nnx.Rngs(0))
    batch, key = windows(RING, 16), jax.random.key(0)
    posterior.calibrate(batch)
    plain = AmortizedConfig(around, config.head).build(RING, nnx.Rngs(0))
    plain.calibrate(batch)
    start = posterior.encoder.locate(batch).frame[1]
    np.testing.assert_allclose(start, batch.background, atol=1e-5)  # an untrained solver
    loss, terms = posterior.loss(batch, key)
    error = np.square(batch.target - start).sum(axis=-1).mean() / np.square(batch.target - batch.background).mean()
    np.testing.assert_allclose(terms["penalty"], 0.5 * error, rtol=1e-4)
    np.testing.assert_allclose(loss, plain.loss(batch, key)[0], atol=0.05)  # the loss stays that of the head, at modes no higher

    def of_head(posterior):
        located = posterior.encoder.locate(batch)
        z, log_det = posterior.encoder.to_z(batch.target, batch, located.frame)
        return (posterior.head.loss(z, located.context, key) - log_det).mean()

    gradient = nnx.grad(of_head)(posterior)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient["encoder"]["solver"]))
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient["head"]))
    draws = posterior.sample(batch._replace(target=None), key, 4)
    assert draws.shape == (16, 4, 10) and bool(jnp.isfinite(draws).all())
    assert bool(jnp.isfinite(posterior.log_prob(draws, batch._replace(target=None))).all())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SolverEncoderConfig(weight=-1.0), "weight"),
        (lambda: SolvedAnalysisEncoderConfig(weight=0.0), "weight"),
        (lambda: SolvedAnalysisEncoderConfig(FourDVarNetConfig()), "background"),
        (lambda: SolverEncoderConfig(FourDVarNetConfig(loss=SolverLoss(gradient=1.0))), "of its own"),
        (lambda: SolverEncoderConfig(FourDVarNetConfig(modulator=ConvLSTMConfig(dropout=0.5))), "of its own"),
        (lambda: SolverEncoderConfig(FourDVarNetConfig(newton=NewtonConfig())), "Newton"),
        (lambda: located("ring", ScoreHeadConfig(net=UNetConfig(grid=(5,), channels=(4,), depth=(1,)))), "grid of the encoder"),
        (lambda: SolvedAnalysisEncoderConfig().build(RING.spec, nnx.Rngs(0)), "simulator"),
        (lambda: SolverEncoderConfig().build(RING.spec, nnx.Rngs(0)), "simulator"),
        (lambda: FourDVarNetConfig(first_guess="zero").build(RING, nnx.Rngs(0)), "background"),
        (lambda: FourDVarNetConfig(first_guess="background").build(SQUARE, nnx.Rngs(0)), "background"),
        (lambda: Layout((8,), "time", False), "time axis"),
    ],
)
def test_what_does_not_fit_together_is_an_error(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_a_background_of_another_shape_is_an_error():
    model = AROUND.build(RING, nnx.Rngs(0))
    batch = windows(RING, 2)._replace(target=None)
    for wrong in (None, batch.background[:, :4]):
        with pytest.raises(ValueError, match="expected `background` of shape"):
            model(batch._replace(background=wrong))
