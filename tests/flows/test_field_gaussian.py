"""The Gaussian of fields against its own Jacobian, and against the density of a stationary field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.stats import multivariate_normal

from tests.perturb import noise, perturb
from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError
from vardax_flax.flows import FieldGaussian
from vardax_flax.flows.field import SPEED, interpolation
from vardax_flax.heads import RegressionHeadConfig, ScoreHeadConfig
from vardax_flax.nn import UNetConfig

grids = mostly_slow("grid", [(5,), (4, 6), (8,), (4, 8), (5, 3)], quick=3)


def build(grid, channels=1, periodic=True, levels=0):
    dim = channels * int(np.prod(grid))
    config = UNetConfig(grid=grid, channels=(3,), depth=(1,), periodic=periodic)
    gaussian = FieldGaussian(config, dim, dim + 2, long_waves=levels or None, rngs=nnx.Rngs(0))
    return perturb(gaussian, 0.1), noise(dim, seed=1), noise(dim + 2, seed=2)


@grids
def test_log_det_is_that_of_the_jacobian_and_the_way_back_is_exact(grid, x64):
    levels = 2 if not any(n % 4 for n in grid) else 1 if not any(n % 2 for n in grid) else 0
    for channels, periodic in ((1, True), (2, True), (1, False)):
        gaussian, x, context = build(grid, channels, periodic, levels)

        @jax.jit
        def both_ways(x, context, gaussian=gaussian):
            z, log_det = gaussian.forward(x, context)
            return log_det, jax.jacobian(lambda x: gaussian.forward(x, context)[0])(x), *gaussian.inverse(z, context)

        log_det, jacobian, back, inverse = both_ways(x, context)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-9)
        np.testing.assert_allclose(back, x, atol=1e-10)
        np.testing.assert_allclose(inverse, -log_det, atol=1e-10)


@pytest.mark.parametrize(("n", "levels"), [(6, 0), (8, 2)])
def test_the_density_is_that_of_a_stationary_field_times_its_scales(n, levels, x64):
    """Covariance B Bᵀ with B = diag(e^s) A₁ A₂ C^½, C the circulant matrix of the spectrum."""
    gaussian, x, context = build((n,), levels=levels)
    mean, log_scale, coarse = gaussian.parameters(context)
    row = np.fft.irfft(np.exp(SPEED * np.asarray(gaussian.spectrum[...])[:, 0]), n)
    circulant = np.stack([np.roll(row, i) for i in range(n)])
    factor = np.diag(np.exp(log_scale))
    for level, scale in enumerate(coarse, 1):
        basis = interpolation(n, n >> level, True)
        factor = factor @ (np.eye(n) + basis @ np.diag(np.expm1(scale[:, 0])) @ basis.T)
        assert np.ptp(scale) > 0.01
    z, log_det = gaussian.forward(x, context)
    got = log_det - 0.5 * (jnp.square(z) + np.log(2 * np.pi)).sum()
    np.testing.assert_allclose(got, multivariate_normal.logpdf(x, mean, factor @ circulant @ factor.T), atol=1e-9)
    assert abs(circulant - np.diag(np.diag(circulant))).max() > 0.1


def test_draws_share_contexts_and_large_scales_come_back_in_single_precision():
    gaussian, _, _ = build((4, 8), channels=2, levels=2)
    z, context = 3 * noise(5, 64), 40 * noise(3, 1, 66, seed=4)
    assert max(float(abs(scale).max()) for scale in gaussian.parameters(context)[2]) > 3
    x, log_det = jax.jit(gaussian.inverse)(z, context)
    back, minus = jax.jit(gaussian.forward)(x, context)
    assert x.shape == back.shape == (3, 5, 64)
    np.testing.assert_allclose(back, jnp.broadcast_to(z, back.shape), atol=1e-3)
    np.testing.assert_allclose(log_det, -minus, rtol=1e-5)
    np.testing.assert_allclose(x[1, 2], jax.jit(gaussian.inverse)(z[2], context[1, 0])[0], rtol=1e-4, atol=1e-4)


def test_a_coarse_scale_makes_long_waves_larger_where_it_is_large_and_leaves_short_ones(x64):
    """Of white noise, twice the amplitude of waves of 8 points and more in the left half alone."""
    n = 64
    gaussian = FieldGaussian(UNetConfig(grid=(n,), channels=(3,), depth=(1,)), n, n, long_waves=2, rngs=nnx.Rngs(0))
    left = np.where(np.arange(n // 4) < n // 8, np.log(2.0), 0.0)[:, None]
    draws = np.asarray(gaussian._scale_long_waves(noise(40_000, n), jnp.asarray(left), 2))
    waves = interpolation(n, n // 4, True)
    long = draws @ waves
    np.testing.assert_allclose(long.std(axis=0), np.exp(left[:, 0]), rtol=0.03)
    np.testing.assert_allclose(np.linalg.norm(draws - long @ waves.T, axis=1).mean(), np.sqrt(n - n // 4), rtol=0.01)


@pytest.mark.parametrize("periodic", [True, False])
def test_interpolation_has_orthonormal_columns_and_keeps_what_the_coarse_grid_can_hold(periodic):
    for n, m in ((12, 6), (12, 3), (8, 1), (5, 5)):
        basis = interpolation(n, m, periodic)
        np.testing.assert_allclose(basis.T @ basis, np.eye(m), atol=1e-12)
        np.testing.assert_allclose(basis @ np.ones(m), np.sqrt(m / n), atol=1e-12)
    wave = np.cos(2 * np.pi * 2 * np.arange(12) / 12 + 0.3)
    if periodic:
        np.testing.assert_allclose(interpolation(12, 6, True) @ (interpolation(12, 6, True).T @ wave), wave, atol=1e-12)


@pytest.mark.parametrize("config", [ScoreHeadConfig, RegressionHeadConfig])
def test_long_waves_need_a_grid_that_can_be_halved_so_often(config):
    net = UNetConfig(grid=(8, 12), channels=(3,), depth=(1,))
    assert config(net=net, long_waves=2).build(96, 96, nnx.Rngs(0)).dim == 96
    refused = {"divisible by 8": {"net": net, "long_waves": 3}, "a `net`": {"long_waves": 1}, ">= 1": {"net": net, "long_waves": 0}}
    for message, wrong in refused.items():
        with pytest.raises(ConfigError, match=message):
            config(**wrong)
