"""Fields under tracks: the covariance in closed form, the geometry of the tracks, and a posterior computed by other software."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.bench.fields import load_fields
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.ops.linear import conjugate_gradient
from vardax_flax.simulators import Tracks2D

SMALL = Tracks2D(size=8, days=3, length=1.5, correlation_time=4.0, drift=(-0.3, 0.7))


def covariance(simulator):
    """Cov(x_t(r), x_s(q)) = Σ_k S(k) e^{−|t−s|/τ} cos k · (r − q − c (t − s)), summed over the whole plane of wave numbers."""
    n, days = simulator.size, np.arange(simulator.days)
    k = np.stack(np.meshgrid(*[2 * np.pi * np.fft.fftfreq(n)] * 2, indexing="ij"), -1)
    spectrum = (1 + simulator.length**2 * (k**2).sum(-1)) ** -2.5
    spectrum[0, 0] = spectrum[n // 2] = spectrum[:, n // 2] = 0
    spectrum /= spectrum.sum()
    place = np.stack(np.meshgrid(days, np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 3)
    lag = place[:, None] - place
    moved = lag[..., 1:] - np.array(simulator.drift) * lag[..., :1]
    waves = np.cos(np.einsum("abi,xyi->abxy", moved, k))
    return np.einsum("abxy,xy->ab", waves, spectrum) * np.exp(-abs(lag[..., 0]) / simulator.correlation_time)


def test_the_field_has_the_covariance_of_its_spectrum(x64):
    root = jax.jacobian(SMALL.field)(jnp.zeros(SMALL.control_shape)).reshape(3 * 64, -1)
    np.testing.assert_allclose(root @ root.T, covariance(SMALL), atol=1e-12)


@pytest.mark.slow
def test_the_state_is_the_middle_day(x64):
    w = jax.random.normal(jax.random.key(0), SMALL.control_shape)
    np.testing.assert_allclose(SMALL.state(w, SMALL.sample(jax.random.key(1))), SMALL.field(w)[1], atol=1e-12)


@pytest.mark.slow
def test_every_pass_is_a_line_of_one_pixel_a_row():
    simulator = Tracks2D(size=32, days=5, satellites=1, pass_rate=1.0)
    mask = np.asarray(simulator.tracks(jax.random.key(0)))
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert (mask.sum(-1) <= 2).all() and (mask.sum(-1) >= 1).all()  # upwards and downwards, one pixel where they cross
    assert (np.asarray(Tracks2D(size=32, days=5, pass_rate=1e-6).tracks(jax.random.key(0))) == 0).all()


def test_tracks_cover_as_much_as_the_stored_ones():
    stored = load_fields().batch.mask.mean(axis=(1, 2, 3))
    drawn = np.asarray(jax.jit(jax.vmap(Tracks2D().tracks))(jax.random.split(jax.random.key(0), 64))).mean(axis=(1, 2, 3))
    assert abs(drawn.mean() - stored.mean()) < 0.004
    assert drawn.min() < stored.max() and stored.min() > drawn.min() - 0.005 and stored.max() < drawn.max() + 0.005


def test_observations_are_the_field_and_noise():
    element = Tracks2D().sample(jax.random.key(3))
    error = np.asarray(element.input[7] - element.target)[np.asarray(element.mask[7]) > 0]
    assert len(error) > 100 and abs(error.std() / 0.05 - 1) < 0.2
    np.testing.assert_array_equal(np.asarray(element.input)[np.asarray(element.mask) == 0], 0)


@functools.partial(jax.jit, static_argnums=(0, 3))
def solve(simulator, element, b, steps):
    """(I + JᵀJ)⁻¹ b."""
    push = lambda w: simulator.misfit(w, element._replace(input=jnp.zeros_like(element.input)))  # noqa: E731
    pull = jax.linear_transpose(push, b)
    return conjugate_gradient(lambda w: w + pull(push(w))[0], b, steps)


@pytest.mark.parametrize("i", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3))])
def test_the_analysis_is_the_stored_posterior_mean(i, x64):
    """Stored as float32, computed by a dense solve: what conjugate gradients have not reached yet is the larger error."""
    simulator, fields = Tracks2D(), load_fields()
    element = Batch(jnp.asarray(fields.batch.input[i], float), jnp.asarray(fields.batch.mask[i], float))
    start = jnp.zeros(simulator.control_shape)
    b = jax.grad(lambda w: -0.5 * jnp.square(simulator.misfit(w, element)).sum())(start)
    mean = simulator.state(solve(simulator, element, b, 500), element)
    np.testing.assert_allclose(mean, fields.mean[i], atol=2e-3)


@pytest.mark.slow
def test_the_variance_is_the_stored_one(x64):
    """Var x(r) = eᵀ L (I + JᵀJ)⁻¹ Lᵀ e at some pixels."""
    simulator, fields = Tracks2D(), load_fields()
    element = Batch(jnp.asarray(fields.batch.input[1], float), jnp.asarray(fields.batch.mask[1], float))
    start = jnp.zeros(simulator.control_shape)
    for row, column in ((5, 9), (40, 31)):
        at = lambda w, r=row, c=column: simulator.state(w, element)[r, c]  # noqa: E731
        b = jax.grad(at)(start)
        std = jnp.sqrt(at(solve(simulator, element, b, 500)))
        np.testing.assert_allclose(std, fields.std[1, row, column], rtol=1e-3)


@pytest.mark.parametrize(
    "field",
    [{"size": 7}, {"size": 2}, {"days": 4}, {"satellites": 0}, {"pass_rate": 0.0}, {"length": -1.0}, {"noise_std": 0.0},
     {"correlation_time": 0.0}],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(field):
    with pytest.raises(ConfigError, match="expected .*, got .*; do "):
        Tracks2D(**field)
