"""The encoder in control space against exact posteriors of linear Gaussian models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vardax_flax as vf
from tests.simulators.test_tracks2d import SMALL, covariance
from vardax_flax.encoders import ControlEncoderConfig


def draw(simulator, n, seed=0):
    return jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(seed), n))


def located(simulator, steps, batch):
    encoder = ControlEncoderConfig(steps).build(simulator.spec, nnx.Rngs(0), simulator)
    encoder.calibrate(batch)
    return encoder, jax.jit(lambda b: encoder.locate(b))(batch)


def test_enough_steps_find_the_exact_mean_of_a_linear_gaussian_model(x64):
    simulator = vf.LinearGaussian.random(4, 6, missing_rate=0.3)
    batch = draw(simulator, 8)
    exact = jax.jit(jax.vmap(lambda element: simulator.posterior(element)[0]))(batch)
    encoder, (context, analysis) = located(simulator, 20, batch)
    np.testing.assert_allclose(analysis, exact, atol=1e-9)
    assert context.shape == (8, encoder.features) == (8, 4 + 2 * 6)
    assert abs(located(simulator, 1, batch)[1].frame - exact).max() > 1e-3


@pytest.mark.slow
def test_enough_steps_krige_a_field(x64):
    batch = draw(SMALL, 3)
    prior = covariance(SMALL)
    _, (_, analysis) = located(SMALL, 400, batch)
    for y, mask, found in zip(batch.input, batch.mask, analysis, strict=True):
        seen = np.flatnonzero(mask)
        gain = np.linalg.solve(prior[np.ix_(seen, seen)] + 0.05**2 * np.eye(len(seen)), np.asarray(y).ravel()[seen])
        np.testing.assert_allclose(found.ravel(), prior[64:128, seen] @ gain, atol=1e-6)


def test_the_context_is_a_field_of_analysis_misfits_and_masks(x64):
    batch = draw(SMALL, 16)
    encoder, (context, analysis) = located(SMALL, 5, batch)
    field = np.asarray(context).reshape(16, 8, 8, 7)
    np.testing.assert_allclose(field[..., 0], (analysis - analysis.mean()) / analysis.std(), atol=1e-9)
    np.testing.assert_array_equal(np.moveaxis(field[..., 4:], -1, 1), batch.mask)
    misfit = np.moveaxis(field[..., 1:4], -1, 1)
    assert (misfit[np.asarray(batch.mask) == 0] == 0).all()
    np.testing.assert_allclose(misfit[np.asarray(batch.mask) == 1].std(), 1, atol=1e-6)


def test_to_z_and_back_with_the_jacobian(x64):
    batch = draw(SMALL, 4)
    encoder, (_, analysis) = located(SMALL, 5, batch)
    z, log_det = encoder.to_z(batch.target, batch, analysis)
    np.testing.assert_allclose(jnp.square(z).mean(), 1, atol=1e-9)
    np.testing.assert_allclose(encoder.to_x(z, batch, analysis), batch.target, atol=1e-12)
    np.testing.assert_allclose(log_det, -64 * jnp.log(encoder.scale[...]), atol=1e-9)
    draws = jnp.stack([z, 2 * z], axis=1)
    x = encoder.to_x(draws, batch, analysis)
    np.testing.assert_allclose(encoder.to_z(x, batch, analysis)[0], draws, atol=1e-12)
