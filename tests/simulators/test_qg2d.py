"""Quasi-geostrophic eddies: what the equations conserve, waves in closed form, the order of the integrator, and the climate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.core.config import ConfigError
from vardax_flax.simulators import QG2D, Tracks2D
from vardax_flax.simulators.tracks import nadir_tracks

SMALL = QG2D(size=16, days=3, spinup_days=2, length=1.5, satellites=2)
FREE = dataclasses.replace(SMALL, drag=0.0, damping=0.0)  # neither forced nor damped


def height(simulator, seed=0):
    """A field of the kept waves."""
    x = jax.random.normal(jax.random.key(seed), (simulator.size, simulator.size))
    return simulator.height(simulator.vorticity(x))


def jacobian(simulator, x):
    """−J(ψ, q) − β ∂ψ/∂x as a rate of x, by the convolution of Fourier series, wave by wave; ψ comes from q alone."""
    n, k = simulator.size, np.round(np.fft.fftfreq(simulator.size, 1 / simulator.size)).astype(int)
    q = np.fft.fft2(simulator.vorticity(x)) / n**2
    waves = [(a, b) for a in k for b in k if 0 < a * a + b * b < (n / 3) ** 2]
    inverse = {w: -1 / ((2 * np.pi / n) ** 2 * (w[0] ** 2 + w[1] ** 2) + simulator.deformation_radius**-2) for w in waves}
    psi = {w: inverse[w] * q[w] for w in waves}
    rate = np.zeros((n, n), complex)
    for a, b in waves:
        rate[a, b] -= simulator.beta * 2j * np.pi / n * b * psi[a, b]
        for c, d in waves:
            if (a - c, b - d) in psi:  # J(ψ, q) = ψ_x q_y − ψ_y q_x with x along the columns
                rate[a, b] += (2 * np.pi / n) ** 2 * (d * (a - c) - c * (b - d)) * psi[c, d] * q[a - c, b - d]
    return simulator.height(jnp.asarray(np.fft.ifft2(rate * n**2).real))


def test_the_tendency_is_the_convolution_of_fourier_series(x64):
    x = height(FREE)
    expected = jacobian(FREE, x)
    np.testing.assert_allclose(FREE.tendency(x), expected, atol=1e-12 * np.abs(expected).max())


def test_energy_and_enstrophy_are_conserved(x64):
    """dE/dt = −⟨ψ ∂q/∂t⟩ and dZ/dt = ⟨q ∂q/∂t⟩, relative to what they are made of."""
    x = jnp.stack([height(FREE, seed) for seed in range(3)])
    q, rate = FREE.vorticity(x), FREE.vorticity(FREE.tendency(x))
    for field in (x, q):
        scale = jnp.abs(field * rate).mean(axis=(1, 2))
        assert (np.abs((field * rate).mean(axis=(1, 2))) < 1e-13 * scale).all()
    damped = dataclasses.replace(SMALL, drag=0.1)
    assert (-(x * damped.vorticity(damped.tendency(x))).mean(axis=(1, 2)) < 0).all()


def test_height_and_potential_vorticity_are_inverses(x64):
    x = height(SMALL)
    assert np.abs(x).max() > 0.1
    np.testing.assert_allclose(SMALL.height(SMALL.vorticity(x)), x, atol=1e-13)
    row, column = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    wave = np.cos(2 * np.pi * (2 * column + row) / 16)  # ∇²ψ − ψ / L_d², by the wave number
    ratio = np.asarray(SMALL.vorticity(jnp.asarray(wave)) / wave)[np.abs(wave) > 0.1]
    square = 5 * (2 * np.pi / 16) ** 2
    np.testing.assert_allclose(ratio / ratio[0], 1, rtol=1e-12)
    twice = dataclasses.replace(SMALL, deformation_radius=2 * SMALL.deformation_radius).vorticity(jnp.asarray(wave))
    expected = (square + 1 / 16**2) / (square + 1 / 8**2)
    np.testing.assert_allclose(np.asarray(twice / SMALL.vorticity(jnp.asarray(wave)))[np.abs(wave) > 0.1], expected, rtol=1e-12)


@pytest.mark.parametrize(("down", "across"), [(0, 1), (2, 1), (-1, 3)])
def test_a_rossby_wave_follows_its_dispersion_relation(down, across, x64):
    """ω = −β k / (k² + l² + L_d⁻²); a plane wave does not advect itself, and the linear part is integrated exactly."""
    row, column = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    k, l = 2 * np.pi * across / 16, 2 * np.pi * down / 16  # noqa: E741
    square = k**2 + l**2
    omega = -FREE.beta * k / (square + FREE.deformation_radius**-2)
    start = jnp.asarray(np.cos(k * column + l * row))
    np.testing.assert_allclose(FREE.evolve(start, 5), np.cos(k * column + l * row - 5 * omega), atol=1e-12)
    damped = dataclasses.replace(FREE, drag=0.05, damping=3.0)
    rate = damped.drag * square / (square + damped.deformation_radius**-2) + damped.damping * (square / (2 * np.pi / 3) ** 2) ** 4
    np.testing.assert_allclose(damped.evolve(start, 5), np.exp(-5 * rate) * FREE.evolve(start, 5), atol=1e-12)


def test_the_integrator_is_of_fourth_order(x64):
    x = height(SMALL) * 0.5
    end = [dataclasses.replace(SMALL, steps_per_day=n).evolve(x, 1) for n in (16, 32, 64)]
    coarse, fine = (float(jnp.abs(a - b).max()) for a, b in zip(end, end[1:], strict=False))
    assert 3.5 < np.log2(coarse / fine) < 4.8 and fine < 1e-4


def test_a_shift_of_the_start_shifts_the_end(x64):
    x, by = height(SMALL), (3, -5)
    end = SMALL.evolve(x, 2)
    np.testing.assert_allclose(SMALL.evolve(jnp.roll(x, by, (0, 1)), 2), jnp.roll(end, by, (0, 1)), atol=1e-11)


def test_days_follow_each_other(x64):
    x = SMALL.field(jax.random.key(0))
    assert x.shape == (3, 16, 16) and x.dtype == jnp.float64
    np.testing.assert_allclose(SMALL.evolve(x[:2], 1), x[1:], atol=1e-12)
    np.testing.assert_allclose(SMALL.evolve(x[0], 2), x[2], atol=1e-12)
    longer = dataclasses.replace(SMALL, spinup_days=3, days=2).field(jax.random.key(0))
    np.testing.assert_allclose(longer, x[1:], atol=1e-12)


def test_the_start_has_its_spectrum_and_speed(x64):
    """Before the spin-up: a velocity of `speed`, to a percent (thousands of degrees of freedom), and S(k)."""
    simulator = QG2D(size=16, days=1, spinup_days=0, length=1.5, steps_per_day=64, beta=0.0, drag=0.0, damping=0.0, speed=1e-3)
    x = jax.vmap(simulator.field)(jax.random.split(jax.random.key(0), 400))[:, 0]  # a day of so slow a flow later
    q = np.fft.fft2(jax.vmap(simulator.vorticity)(x))
    k = 2 * np.pi * np.hypot(np.fft.fftfreq(16)[:, None], np.fft.fftfreq(16)[None, :])
    power = np.square(np.abs(q)).mean(axis=0) / 16**4
    speed = np.sqrt((power * k**2 / (k**2 + 8.0**-2) ** 2).sum())
    assert abs(speed / simulator.speed - 1) < 0.02
    expected = k**6 * (1 + 1.5**2 * k**2) ** -7 * (k < 2 * np.pi / 3) * (k**2 + 8.0**-2) ** 2
    kept = expected > 0
    ratio = power[kept] / power[kept].sum() / (expected[kept] / expected[kept].sum())
    assert (np.abs(ratio - 1) < 6 * np.sqrt(2 / 400)).all()  # a mean of 400 squares, some of which have one degree of freedom
    np.testing.assert_allclose(power[~kept], 0, atol=1e-20 * power.max())


def test_observations_are_the_field_and_noise(x64):
    simulator = dataclasses.replace(SMALL, size=32, days=5)
    element = simulator.sample(jax.random.key(3))
    seen = np.asarray(element.mask) > 0
    error = np.asarray(element.input - element.target)[seen]
    assert len(error) > 200 and abs(error.std() / 0.05 - 1) < 5 / np.sqrt(2 * len(error))
    np.testing.assert_array_equal(np.asarray(element.input)[~seen], 0)
    assert element.input.shape == element.target.shape == (5, 32, 32)
    again, mask = simulator.observe(element.target, jax.random.key(4))
    assert (np.asarray(mask) != np.asarray(element.mask)).any() and (np.asarray(again)[np.asarray(mask) == 0] == 0).all()


def test_a_linear_field_has_the_same_tracks_and_may_be_inferred_on_all_days(x64):
    middle = Tracks2D(size=16, days=5, satellites=2)
    window = dataclasses.replace(middle, target="window")
    key = jax.random.key(5)
    one, all_days = middle.sample(key), window.sample(key)
    np.testing.assert_array_equal(all_days.input, one.input)
    assert all_days.target.shape == (5, 16, 16)
    np.testing.assert_array_equal(all_days.target[2], one.target)
    w = jax.random.normal(key, middle.control_shape)
    np.testing.assert_allclose(window.state(w, all_days)[2], middle.state(w, one), atol=1e-12)
    np.testing.assert_allclose(window.state(w, all_days), window.field(w), atol=1e-12)
    np.testing.assert_array_equal(middle.tracks(key), nadir_tracks(key, 16, 5, 2, middle.pass_rate))
    wrong = object.__new__(Tracks2D)  # past the check of types that tests have and users have not
    wrong.__dict__.update(dataclasses.asdict(middle), target="windows")
    with pytest.raises(ConfigError, match="expected target of 'middle', 'window', got 'windows'; do .*did you mean 'window'"):
        wrong.__post_init__()


def test_the_climate_is_stationary_nonlinear_and_of_unit_variance():
    """The standard deviation of a window varies by 0.06, so that of 16 by 0.015; four of these, and 0.01 for that of the stored growth."""
    x = np.asarray(jax.jit(jax.vmap(QG2D().field))(jax.random.split(jax.random.key(0), 16)))
    std = np.sqrt(np.square(x).mean(axis=(0, 2, 3)))
    assert np.isfinite(x).all() and (np.abs(std - 1) < 0.07).all() and abs(std[-1] / std[0] - 1) < 0.15
    correlation = [(x[:, 0] * x[:, lag]).mean() / std[0] / std[lag] for lag in (1, 5, 14)]
    assert correlation[0] > 0.95 and 0.5 < correlation[1] < 0.9 and correlation[2] < 0.5
    q = np.asarray(QG2D().vorticity(jnp.asarray(x[:, -1])))
    assert (q**4).mean() / (q**2).mean() ** 2 > 3.5  # vortices: a Gaussian field has 3


@pytest.mark.parametrize(
    "field",
    [{"size": 9}, {"size": 6}, {"speed": 7.0}, {"days": 0}, {"satellites": 0}, {"pass_rate": 0.0}, {"length": -1.0}, {"noise_std": 0.0},
     {"speed": 0.0}, {"steps_per_day": 0}, {"deformation_radius": 0.0}, {"spinup_days": -1}, {"drag": -0.1}, {"damping": float("nan")},
     {"beta": float("inf")}],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(field):
    with pytest.raises(ConfigError, match="expected .*, got .*; do "):
        QG2D(**field)
