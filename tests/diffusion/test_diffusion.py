"""Noise processes, samplers and densities against states whose denoiser is known in closed form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.perturb import noise
from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError
from vardax_flax.diffusion import EDM, PROCESSES, SAMPLERS, STEPS, VarianceExploding, VariancePreserving, base_mean, log_prob, weight

processes = mostly_slow("process", [cls() for cls in PROCESSES.values()], [EDM()], ids=lambda p: p.kind)
samplers = mostly_slow("name", sorted(SAMPLERS), ["adams", "heun"])
GAP = 2.5  # half the distance of the two modes
SHARE, WIDTH = 0.3, 0.2  # of the left one; standard deviation of both


def gaussian_denoiser(mean, cov):
    """E[x₀ | x] under N(mean, cov): mean + cov (cov + σ² I)⁻¹ (x − mean)."""

    def denoise(x, level):
        return mean + cov @ jnp.linalg.solve(cov + jnp.square(level) * jnp.eye(len(mean)), x - mean)

    return denoise


def two_modes(x, level):
    """E[x₀ | x] of a mixture of N(∓ gap, width²) along the first axis, the second one standard normal."""
    variance = WIDTH**2 + jnp.square(level)
    logit = math.log((1 - SHARE) / SHARE) + 2 * GAP * x[0] / variance
    right = jax.nn.sigmoid(logit)
    mean = (2 * right - 1) * GAP
    gain = WIDTH**2 / variance
    first = jnp.array([(1 - gain) * mean + gain * x[0]])
    return jnp.concatenate([first, x[1:] / (1 + jnp.square(level))])


def velocity_of(denoise):
    """v = (cos φ u − D) / sin φ, and D takes x = u / cos φ at the level tan φ."""
    return lambda u, angle: (jnp.cos(angle) * u - denoise(u / jnp.cos(angle), jnp.tan(angle))) / jnp.sin(angle)


def draw(denoise, name, process, n, steps, dim=2, seed=0):
    angles, velocity = process.angles(steps), velocity_of(denoise)

    @jax.jit
    @jax.vmap
    def one(key):
        key_start, key_path = jax.random.split(key)
        u = jax.random.normal(key_start, (dim,))
        return SAMPLERS[name](velocity, base_mean(velocity, angles[0], u) + u, angles, key_path)

    return np.asarray(one(jax.random.split(jax.random.key(seed), n)))


@processes
def test_the_level_rises_with_time_and_the_density_of_training_levels_is_the_one_drawn(process, x64):
    t = jnp.linspace(process.first, process.last, 200)
    assert (np.diff(process.level(t)) > 0).all()
    u = (jnp.arange(200_000) + 0.5) / 200_000
    level, density = process.training_level(u)
    low, high = process.level(jnp.array([process.first, process.last]))
    assert level.min() >= 0.999 * low and level.max() <= 1.001 * high
    edges = jnp.quantile(jnp.log(level), jnp.linspace(0.05, 0.95, 11))
    centre, width = (edges[1:] + edges[:-1]) / 2, jnp.diff(edges)
    found = jnp.interp(centre, jnp.log(level), density)
    np.testing.assert_allclose(found, 0.09 / width, rtol=0.1)
    # weighted by the inverse of that density every log level counts alike, with the factor of the likelihood
    expected = 0.5 * (jnp.log1p(low**-2) - jnp.log1p(high**-2))
    np.testing.assert_allclose(weight("likelihood", level, density).mean(), expected, rtol=0.02)


@processes
def test_the_angles_of_a_sampler_fall_from_the_largest_to_nothing(process):
    angles = np.asarray(process.angles(18))
    assert angles.shape == (19,) and (np.diff(angles) < 0).all() and angles[-1] == 0
    np.testing.assert_allclose(angles[[0, -2]], np.arctan(process.level(jnp.array([process.last, process.first]))), rtol=1e-4)


def test_the_kernels_solve_their_equations(x64):
    """dα/dt = −½ β α; the variance of the noise obeys d(σ²)/dt = β − β σ² (vp), β (1 − α⁴) − β σ² (sub-vp)."""
    t = jnp.linspace(0.01, 1, 50)
    vp, sub = PROCESSES["vp"](), PROCESSES["sub_vp"]()
    beta = vp.beta_min + t * (vp.beta_max - vp.beta_min)
    for process, rate in ((vp, lambda alpha: 1.0), (sub, lambda alpha: 1 - alpha**4)):
        (alpha, sigma), (d_alpha, d_sigma) = jax.jvp(process.kernel, (t,), (jnp.ones_like(t),))
        np.testing.assert_allclose(d_alpha, -0.5 * beta * alpha, rtol=1e-9)
        np.testing.assert_allclose(2 * sigma * d_sigma, beta * (rate(alpha) - sigma**2), rtol=1e-8, atol=1e-10)
    alpha, sigma = vp.kernel(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


def test_every_sampler_has_its_steps():
    assert set(STEPS) == set(SAMPLERS)


@samplers
def test_samplers_draw_from_a_gaussian(name, x64):
    mean, cov = np.array([0.7, -0.4]), np.array([[1.0, 0.5], [0.5, 0.6]])
    draws = draw(gaussian_denoiser(jnp.asarray(mean), jnp.asarray(cov)), name, EDM(), 8000, STEPS[name])
    white = np.linalg.solve(np.linalg.cholesky(cov), (draws - mean).T).T
    assert np.abs(white.mean(axis=0)).max() < 4 / np.sqrt(8000)
    np.testing.assert_allclose(np.cov(white.T), np.eye(2), atol=0.06)
    assert min(stats.kstest(column, "norm").pvalue for column in white.T) > 1e-3


@samplers
def test_two_modes_with_a_gap_keep_their_weights(name, x64):
    draws = draw(two_modes, name, EDM(), 8000, STEPS[name])
    left = draws[:, 0] < 0
    assert abs(left.mean() - SHARE) < 0.02
    assert (np.abs(draws[:, 0]) > GAP - 6 * WIDTH).all()  # nothing in the gap
    for side, centre in ((left, -GAP), (~left, GAP)):
        np.testing.assert_allclose(draws[side, 0].std(), WIDTH, rtol=0.06)
        np.testing.assert_allclose(draws[side, 0].mean(), centre, atol=0.02)


@mostly_slow(("name", "order"), [("adams", 4), ("heun", 2), ("ddim", 1)])
def test_the_error_falls_with_the_order_of_the_sampler(name, order, x64):
    """The ODE takes draws of N(0, cos² φ / 4 + sin² φ) to draws of N(0, 1 / 4): only the standard deviation changes."""
    velocity, u, key = velocity_of(gaussian_denoiser(jnp.zeros(1), 0.25 * jnp.eye(1))), jnp.ones(1), jax.random.key(0)

    def error(steps):
        angles = jnp.linspace(1.4, 0.0, steps + 1)
        exact = 0.5 / jnp.sqrt(0.25 * jnp.cos(angles[0]) ** 2 + jnp.sin(angles[0]) ** 2)
        return abs(float(SAMPLERS[name](velocity, u, angles, key)[0] - exact))

    assert order - 0.4 < np.log2(error(80) / error(160)) < order + 2.5  # terms of neighbouring orders may cancel


@mostly_slow("scale", [0.01, 0.1, 1.3])
def test_the_default_keeps_spreads_of_every_size_to_a_hundredth(scale, x64):
    velocity, angles = velocity_of(gaussian_denoiser(jnp.zeros(1), scale**2 * jnp.eye(1))), EDM().angles(STEPS["adams"])
    end = SAMPLERS["adams"](velocity, jnp.ones(1), angles, jax.random.key(0))  # linear in the start
    assert float(end[0]) == pytest.approx(scale, rel=0.01)


@processes
def test_every_process_leads_to_the_same_draws(process, x64):
    draws = draw(two_modes, "adams", process, 8000, STEPS["adams"])
    assert abs((draws[:, 0] < 0).mean() - SHARE) < 0.02
    np.testing.assert_allclose(draws[draws[:, 0] < 0, 0].std(), WIDTH, rtol=0.06)
    assert stats.kstest(draws[:, 1], "norm").pvalue > 1e-3


@processes
def test_the_density_of_a_gaussian_is_exact_to_a_thousandth(process, x64):
    mean, cov = np.array([0.7, -0.4]), np.array([[1.0, 0.5], [0.5, 0.6]])
    x = mean + noise(64, 2) @ np.linalg.cholesky(cov).T
    denoise = gaussian_denoiser(jnp.asarray(mean), jnp.asarray(cov))
    got = jax.jit(jax.vmap(lambda x: log_prob(velocity_of(denoise), x, process, jax.random.key(0))))(x)
    np.testing.assert_allclose(got.value, stats.multivariate_normal(mean, cov).logpdf(x), atol=1e-3)
    np.testing.assert_array_equal(got.standard_error, 0)


@pytest.mark.slow
def test_the_density_of_two_modes(x64):
    axis = jnp.linspace(-4, 4, 41)
    x = jnp.stack([axis, 0.3 * axis], axis=-1)
    got = jax.jit(jax.vmap(lambda x: log_prob(velocity_of(two_modes), x, EDM(), jax.random.key(0)).value))(x)
    first = SHARE * stats.norm(-GAP, WIDTH).pdf(axis) + (1 - SHARE) * stats.norm(GAP, WIDTH).pdf(axis)
    expected = np.log(first) + stats.norm.logpdf(x[:, 1])
    probable = expected > -15
    # its variance of 6 is not the 1 that the base density assumes: 6 / σ²_max is what that costs in the tails
    np.testing.assert_allclose(got[probable], expected[probable], atol=1e-2)


@pytest.mark.slow
def test_the_estimated_trace_states_its_error(x64):
    """In 40 components, where the trace is estimated: every value within five of the standard errors it states."""
    scale = jnp.geomspace(0.3, 1.0, 40)
    rotation = jnp.linalg.qr(noise(40, 40))[0]
    cov = rotation @ jnp.diag(scale**2) @ rotation.T
    x = noise(8, 40, seed=3) @ jnp.linalg.cholesky(cov).T
    denoise = gaussian_denoiser(jnp.zeros(40), cov)
    key = jax.random.key(0)
    got = jax.jit(jax.vmap(lambda x, key: log_prob(velocity_of(denoise), x, EDM(), key, probes=32)))(x, jax.random.split(key, 8))
    error = np.asarray(got.value) - stats.multivariate_normal(np.zeros(40), np.asarray(cov)).logpdf(x)
    assert (np.asarray(got.standard_error) > 0.05).all()
    assert (np.abs(error) < 5 * np.asarray(got.standard_error)).all()
    assert np.abs(error).max() > 1e-3


@functools.partial(pytest.mark.parametrize, "build")(
    [
        lambda: VariancePreserving(beta_min=-1.0),
        lambda: VarianceExploding(sigma_min=2.0, sigma_max=1.0),
        lambda: EDM(log_std=0.0),
        lambda: EDM(log_mean=10.0, log_std=0.5),
        lambda: EDM().angles(1),
    ]
)
def test_ranges_that_make_no_sense_are_refused(build):
    with pytest.raises(ConfigError, match="expected .*, got .*; do "):
        build()
