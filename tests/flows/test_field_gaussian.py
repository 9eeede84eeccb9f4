"""The Gaussian of fields against its own Jacobian, and against the density of a stationary field."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.stats import multivariate_normal

from tests.perturb import noise, perturb
from tests.slow import mostly_slow
from vardax_flax.flows import FieldGaussian
from vardax_flax.flows.field import SPEED
from vardax_flax.nn import UNetConfig

grids = mostly_slow("grid", [(5,), (4, 6), (6,), (5, 3)], quick=2)


def build(grid, channels=1, periodic=True):
    dim = channels * int(np.prod(grid))
    config = UNetConfig(grid=grid, channels=(3,), depth=(1,), periodic=periodic)
    return perturb(FieldGaussian(config, dim, dim + 2, rngs=nnx.Rngs(0)), 0.1), noise(dim, seed=1), noise(dim + 2, seed=2)


@grids
def test_log_det_is_that_of_the_jacobian_and_the_way_back_is_exact(grid, x64):
    for channels, periodic in ((1, True), (2, True), (1, False)):
        gaussian, x, context = build(grid, channels, periodic)

        @jax.jit
        def both_ways(x, context, gaussian=gaussian):
            z, log_det = gaussian.forward(x, context)
            return log_det, jax.jacobian(lambda x: gaussian.forward(x, context)[0])(x), *gaussian.inverse(z, context)

        log_det, jacobian, back, inverse = both_ways(x, context)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-9)
        np.testing.assert_allclose(back, x, atol=1e-10)
        np.testing.assert_allclose(inverse, -log_det, atol=1e-10)


def test_the_density_is_that_of_a_stationary_field_times_its_scale(x64):
    """Covariance e^{s_i + s_j} C(i − j), C the Fourier transform of the spectrum."""
    gaussian, x, context = build((6,))
    mean, log_scale = gaussian.parameters(context)
    power = np.exp(SPEED * np.asarray(gaussian.spectrum[...])[:, 0])
    row = np.fft.irfft(power, 6)
    circulant = np.stack([np.roll(row, i) for i in range(6)])
    cov = np.exp(log_scale[:, None] + log_scale) * circulant
    z, log_det = gaussian.forward(x, context)
    got = log_det - 0.5 * (jnp.square(z) + np.log(2 * np.pi)).sum()
    np.testing.assert_allclose(got, multivariate_normal.logpdf(x, mean, cov), atol=1e-9)
    assert abs(circulant - np.diag(np.diag(circulant))).max() > 0.1
