"""Optimal interpolation against a dense solve, its tuning on a field of known covariance, and scales of spectra in closed form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.mapping import SAME_DAY, SPACE, TIME, Scales, TrackOI, neighbour, resolved_scale, rmse, search, spectrum, tuned_oi
from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.simulators import Tracks2D

FORMULAS = {
    "gaussian": lambda r: np.exp(-(r**2)),
    "matern32": lambda r: (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r),
    "matern52": lambda r: (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r),
    "exponential": lambda t: np.exp(-t),
    "same_day": lambda t: (t == 0).astype(float),
}


def windows(days=3, n=8, count=2):
    """Noise at a third of the pixels: what is observed does not matter to an algebraic identity."""
    rng = np.random.default_rng(0)
    mask = (rng.random((count, days, n, n)) < 0.3).astype(float)
    y = np.where(mask > 0, rng.normal(size=mask.shape), np.nan)  # what is not observed is never read
    return Batch(jnp.asarray(y), jnp.asarray(mask))


def dense(batch, oi):
    """C Hᵀ (H C Hᵀ + σ² I)⁻¹ y, with every covariance a sum over the copies of the square."""
    _, days, n, _ = batch.input.shape
    t, r, c = (axis.ravel() for axis in np.meshgrid(np.arange(days), np.arange(n), np.arange(n), indexing="ij"))
    lag = t[:, None] - t
    total = np.zeros(lag.shape)
    for i in range(-3, 4):
        for j in range(-3, 4):
            down = r[:, None] - r - oi.scales.down * lag + i * n
            total += FORMULAS[oi.space](np.hypot(down, c[:, None] - c - oi.scales.across * lag + j * n) / oi.scales.length)
    if not oi.level:  # a covariance on a periodic square has the mean of each of its rows in the mean over the square
        for one, other in np.ndindex(days, days):
            block = np.ix_(t == one, t == other)
            total[block] -= total[block].mean()
    total *= FORMULAS[oi.time](np.abs(lag) / oi.scales.duration)
    maps = []
    for y, mask in zip(np.asarray(batch.input), np.asarray(batch.mask), strict=True):
        seen = np.flatnonzero(mask)
        weights = np.linalg.solve(total[np.ix_(seen, seen)] + oi.scales.noise**2 * np.eye(len(seen)), y.ravel()[seen])
        maps.append((total[:, seen] @ weights).reshape(days, n, n))
    return np.stack(maps)


@mostly_slow(("space", "time"), [(space, time) for space in SPACE for time in TIME], [("gaussian", "gaussian")])
def test_maps_are_those_of_a_dense_solve(space, time, x64):
    """A drift by whole pixels moves a covariance without interpolation; the copies that are left out, 20 pixels away, count 1e-11."""
    oi = TrackOI(space, time, Scales(1.2, 3.0, 0.3, -1.0, 2.0), steps=2000, tolerance=1e-12)
    batch = windows()
    np.testing.assert_allclose(oi(batch), dense(batch, oi), atol=1e-9)


def test_a_drift_by_parts_of_a_pixel(x64):
    """The spectrum of a Gaussian is e^{−(k L / 2)²} of that of the mean: at the shortest wave 4e-10, which bounds the interpolation."""
    oi = TrackOI(scales=Scales(3.0, 3.0, 0.3, 0.3, -0.7), steps=2000, tolerance=1e-12)
    batch = windows(n=16, days=2, count=1)
    np.testing.assert_allclose(oi(batch), dense(batch, oi), atol=1e-6)


def test_maps_without_a_mean(x64):
    oi = TrackOI(scales=Scales(1.5, 3.0, 0.3, -1.0, 2.0), steps=2000, tolerance=1e-12, level=False)
    batch = windows()
    np.testing.assert_allclose(oi(batch), dense(batch, oi), atol=1e-9)
    np.testing.assert_allclose(oi(batch).mean(axis=(-2, -1)), 0, atol=1e-9)


def test_a_spectrum_is_not_negative(x64):
    for space in SPACE:
        assert float(spectrum(space, jnp.asarray(6.0), 16, jnp.dtype(float)).min()) > -1e-9


def test_a_system_that_is_not_solved_is_an_error():
    with pytest.raises(ConfigError, match="expected a relative residual of at most 0.001, got .*; do allow more steps"):
        TrackOI(scales=Scales(length=4.0, noise=0.01), steps=3)(jax.tree.map(lambda x: x.astype(jnp.float32), windows()))


@pytest.mark.parametrize(
    "field",
    [{"space": "cubic"}, {"time": "weekly"}, {"scales": Scales(length=0.0)}, {"scales": Scales(noise=-1.0)},
     {"scales": Scales(duration=math.inf)}],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(field):
    with pytest.raises(ConfigError, match="expected .*, got .*; do "):
        TrackOI(**field)


def test_a_search_comes_back_to_where_it_started():
    scales = Scales()
    for name in Scales._fields:
        assert neighbour(neighbour(scales, name, 1.3, True), name, 1.3, False) == scales
        assert neighbour(scales, name, 1.3, True) != scales


def test_a_search_ends_where_no_neighbour_is_better():
    simulator = Tracks2D(size=16, days=3, length=1.5, satellites=2, target="window")
    batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(0), 4))
    error, found = search(batch, TrackOI("matern32", "same_day", Scales(length=4.0, noise=0.3)), 1.3)
    assert found.scales.duration == Scales().duration and found.scales.down == found.scales.across == 0
    start = rmse(TrackOI("matern32", "same_day", Scales(length=4.0, noise=0.3))(batch), batch.target)
    assert error < start and abs(error / rmse(found(batch), batch.target) - 1) < 0.01
    for name in ("length", "noise"):
        for up in (True, False):
            other = dataclasses.replace(found, scales=neighbour(found.scales, name, 1.3, up))
            assert rmse(other(batch), batch.target) > 0.999 * error


@pytest.mark.slow
def test_tuning_finds_the_covariance_of_the_field():
    """A Matérn field of smoothness 3/2 that drifts: κ = √3 / L = 1 / length, exponential in time; what it finds is as good as the truth."""
    simulator = Tracks2D(size=32, days=7, length=2.5, correlation_time=6.0, drift=(-0.6, 0.4), target="window")
    draw = jax.jit(jax.vmap(simulator.sample))
    batch, fresh = (draw(jax.random.split(jax.random.key(seed), 8)) for seed in (0, 1))
    tuned = tuned_oi(batch)
    exact = TrackOI("matern32", "exponential", Scales(2.5 * math.sqrt(3), 6.0, 0.05, -0.6, 0.4), level=False)
    assert rmse(tuned(fresh), fresh.target) < 1.02 * rmse(exact(fresh), fresh.target)
    assert not tuned.level
    assert abs(tuned.scales.down + 0.6) < 0.16 and abs(tuned.scales.across - 0.4) < 0.16
    assert rmse(tuned_oi(batch, SAME_DAY)(fresh), fresh.target) > 1.1 * rmse(tuned(fresh), fresh.target)


def waves(amplitude, n=32):
    """Rows with a wave of each number 1 … n / 2 of these amplitudes."""
    k, x = np.arange(1, n // 2 + 1)[:, None], np.arange(n)
    phase = np.where(k < n // 2, k, 0)
    return np.broadcast_to((amplitude(k) * np.cos(2 * np.pi * k * x / n + phase)).sum(axis=0), (3, n, n))


def test_the_resolved_scale_of_spectra_in_closed_form():
    """Error e k^{1/2}, truth k^{−1/2}: the ratio of densities is e² k², which passes one half between 4 and 5."""
    truth, error = waves(lambda k: k**-0.5), waves(lambda k: 0.16 * k**0.5)
    low, high = (0.16**2 * k**2 for k in (4, 5))
    assert low < 0.5 < high
    np.testing.assert_allclose(resolved_scale(error, truth), 32 / (4 + (0.5 - low) / (high - low)), rtol=1e-9)
    # a window, a row and their order do not matter, nor does a mean
    np.testing.assert_allclose(resolved_scale(error[:, ::-1] + 1, truth - 2), resolved_scale(error, truth), rtol=1e-9)


def test_the_ends_of_the_resolved_scale():
    truth = waves(lambda k: k**-0.5)
    assert resolved_scale(0.5 * truth, truth) == 2.0 and resolved_scale(0 * truth, truth) == 2.0
    assert resolved_scale(0.8 * truth, truth) == math.inf
    cut = waves(lambda k: (k <= 6) * 1.0)  # rounding is all that is left of the truth beyond
    np.testing.assert_allclose(resolved_scale(0.1 * waves(lambda k: 1.0 + 0 * k), cut), 32 / 6, rtol=1e-6)
    flat = np.broadcast_to(np.array([1.0, -1.0] * 4), (8, 8))  # exactly nothing but the shortest wave
    assert resolved_scale(np.roll(flat, 1, -1) * 0.1, flat) == 2.0
    step = waves(lambda k: 0.1 + (k > 3))
    np.testing.assert_allclose(resolved_scale(step, truth), 32 / (3 + (0.5 - 0.03) / (1.21 * 4 - 0.03)), rtol=1e-9)


def test_the_root_mean_square_error_is_over_everything():
    truth = np.zeros((2, 3, 4, 4))
    assert rmse(jnp.asarray(truth).at[0, 0, 0, 0].set(2.0), truth) == pytest.approx(2 / math.sqrt(96))
