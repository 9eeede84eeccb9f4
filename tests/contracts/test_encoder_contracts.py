"""What every registered encoder promises: any leading axes, blindness to what is hidden, statistics of what is observed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.perturb import perturb
from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.core.interfaces import ControlVariable, LeastSquares
from vardax_flax.encoders import (
    ENCODERS,
    AnalysisEncoderConfig,
    ControlEncoderConfig,
    Conv1DEncoderConfig,
    Conv2DEncoderConfig,
    EncoderConfig,
    IdentityEncoderConfig,
    InnovationEncoderConfig,
    MLPEncoderConfig,
)
from vardax_flax.simulators import LinearGaussian, Lorenz63, TwoMoons

SMALL = {"features": 5, "width": 8, "channels": 4, "depth": 1}
OBS = {"conv2d": (2, 6, 5)}  # of images; everything else sees a series
SERIES = (4, 3)


def small(kind, **extra):
    names = {f.name for f in dataclasses.fields(ENCODERS[kind])}
    return ENCODERS[kind](**{k: v for k, v in SMALL.items() if k in names}, **extra)


VARIANTS = {
    "conv1d": [{}, {"grid": "time"}, {"periodic": False}, {"output": "field"}],
    "conv2d": [{}, {"periodic": True}, {"output": "field"}],
    "set": [{"pooling": "deepset"}, {"pooling": "attention"}],
    "series": [{"cell": "gru"}, {"cell": "attention"}],
    "analysis": [{"inner": small("mlp")}],
    "innovation": [
        {"inner": IdentityEncoderConfig()},
        {"inner": small("mlp")},
        {"inner": small("conv1d")},
    ],
}
LONG = ("conv2d", "innovation", "analysis")  # take their turn with the slow tests, as do all variants of a kind but the first
CONFIGS = [
    pytest.param(small(kind, **extra), marks=[pytest.mark.slow] if i or kind in LONG else [])
    for kind in ENCODERS
    for i, extra in enumerate(VARIANTS.get(kind, [{}]))
]
every = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{getattr(getattr(c, 'inner', None), 'kind', '')}")


class Series(LeastSquares, ControlVariable):
    """Four times, three numbers, a bent model: what the encoders with physics need."""

    kind = "series"
    control_shape = (3,)

    def sample(self, key):
        raise AssertionError("encoders do not simulate")

    def predict(self, x):
        return jnp.sin(jnp.arange(1.0, 5.0))[:, None] * (x + 0.1 * x**2)

    def residual(self, x, element):
        shift = jnp.sin(element.coords).sum(axis=-1)
        misfit = jnp.where(element.mask == 1, element.input - shift - self.predict(x), 0) / element.noise_scale
        return jnp.concatenate([x - element.background, misfit.ravel()])

    def state(self, w, element):
        return element.background + w

    def misfit(self, w, element):
        return -self.residual(self.state(w, element), element)[3:].reshape(SERIES)

    def log_prior(self, x, element):
        return -0.5 * jnp.square(x - element.background).sum()

    def log_likelihood(self, x, element):
        raise AssertionError("nor do they weigh")


PHYSICS = Series()


def elements(config, n=6, missing=0.3, seed=0):
    """A batch with everything an encoder may look at, of size n, whose hidden values are noise too."""
    obs = OBS.get(config.kind, SERIES)
    k = jax.random.split(jax.random.key(seed), 6)
    return Batch(
        input=3 + 2 * jax.random.normal(k[0], (n, *obs)),
        mask=(jax.random.uniform(k[1], (n, *obs)) >= missing).astype(jnp.float32),
        background=1 + jax.random.normal(k[2], (n, 3)),
        noise_scale=jnp.exp(jax.random.normal(k[3], (n, *obs))),
        coords=5 + 3 * jax.random.normal(k[4], (n, *obs, 2)),
        target=2 + jax.random.normal(k[5], (n, 3)),
    )


def with_hidden(batch, value):
    """The batch with this number wherever nothing is observed, and as its target."""
    hide = lambda field: jnp.where(batch.mask == 1, field, value)  # noqa: E731
    coords = jnp.where(batch.mask[..., None] == 1, batch.coords, value)
    target = jnp.full_like(batch.target, value)
    return batch._replace(input=hide(batch.input), noise_scale=hide(batch.noise_scale), coords=coords, target=target)


@functools.cache
def built(config):
    batch = elements(config, 64)
    spec = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), batch)
    encoder = perturb(config.build(spec, nnx.Rngs(0), PHYSICS))
    encoder.calibrate(batch)
    return encoder, jax.jit(lambda batch: encoder(batch))


@functools.cache
def gradient(config):
    graphdef, params, rest = nnx.split(built(config)[0], nnx.Param, ...)
    return jax.jit(lambda batch: jax.grad(lambda p, b: nnx.merge(graphdef, p, rest)(b).sum(), argnums=(0, 1))(params, batch))


@every
def test_leading_axes_are_free(config):
    (encoder, encode), batch = built(config), elements(config, seed=1)
    flat = np.asarray(encode(batch))
    assert flat.shape == (6, encoder.features)
    two = encode(jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), batch))
    np.testing.assert_allclose(two.reshape(flat.shape), flat, atol=1e-5)
    np.testing.assert_allclose(encode(jax.tree.map(lambda a: a[2], batch)), flat[2], atol=1e-5)
    assert (abs(flat[0] - flat[1:]).max(axis=-1) > 1e-3).all()


@every
@pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("hidden", [1e30, np.nan, np.inf])
def test_what_is_hidden_does_not_matter(config, missing, hidden):
    """Whatever stands behind the mask, in values, scales and coordinates: the same context, finite, with finite gradients."""
    (_, encode), batch = built(config), elements(config, missing=missing, seed=1)
    plain, changed = np.asarray(encode(batch)), with_hidden(batch, hidden)
    assert np.isfinite(plain).all()
    np.testing.assert_array_equal(encode(changed), plain)
    of_parameters, of_batch = gradient(config)(changed)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((of_parameters, of_batch)))
    np.testing.assert_array_equal(np.asarray(of_batch.input)[np.asarray(batch.mask) == 0], 0)


@every
@pytest.mark.parametrize("field", ["input", "noise_scale", "coords", "background"])
def test_what_is_observed_does(config, field):
    (_, encode), batch = built(config), elements(config, missing=0.3, seed=1)
    value = getattr(batch, field)
    changed = batch._replace(**{field: 2 * value if field == "noise_scale" else value + 1})
    assert (abs(encode(changed) - encode(batch)).max(axis=-1) > 1e-3).all()


def _mean(encoder):
    """The mean observation, which an encoder without physics sees as 0."""
    return encoder.inputs.input.mean[...]


@every
def test_the_mask_itself_is_seen(config):
    """An observed value that happens to be the mean is not the same as none."""
    (encoder, encode), batch = built(config), elements(config, missing=0.0, seed=1)
    if config.kind not in ("innovation", "analysis", "control"):  # there the innovation of the mean is seen as well
        batch = batch._replace(input=batch.input.at[:, 0, 0].set(_mean(encoder).ravel()[0]))
    bare = batch._replace(mask=batch.mask.at[:, 0, 0].set(0))
    assert (abs(encode(bare) - encode(batch)).max(axis=-1) > 1e-4).all()


def test_calibration_counts_what_is_observed():
    batch = elements(IdentityEncoderConfig(), 4000)
    batch = batch._replace(input=jnp.where(batch.mask == 1, batch.input, jnp.nan))
    spec = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), batch)
    encoder = IdentityEncoderConfig().build(spec, nnx.Rngs(0))
    encoder.calibrate(batch)
    values, mask, noise, first, second, background = np.split(np.asarray(encoder(batch)), [12, 24, 36, 48, 60], axis=-1)
    np.testing.assert_array_equal(mask, batch.mask.reshape(-1, 12))
    for part, weight in ((values, mask), (noise, mask), (first, mask), (second, mask), (background, np.ones_like(background))):
        mean = (part * weight).sum(0) / weight.sum(0)
        np.testing.assert_allclose(mean, 0, atol=1e-4)
        np.testing.assert_allclose(((part - mean) ** 2 * weight).sum(0) / weight.sum(0), 1, atol=1e-3)


def test_an_image_meets_a_background_on_its_grid_point_by_point():
    """A background on the grid joins as a channel: with one cell a side and kernel 1 the context is a function of the pairs at a point."""
    batch = elements(Conv2DEncoderConfig(), 4, 0.0)
    batch = batch._replace(noise_scale=None, coords=None, background=jax.random.normal(jax.random.key(9), batch.input.shape))
    spec = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), batch)
    config = Conv2DEncoderConfig(features=5, channels=4, depth=1, kernel_size=1, pool_cells=1)
    encode = jax.jit(perturb(config.build(spec, nnx.Rngs(0))).__call__)

    def moved(*fields):
        return encode(batch._replace(**{name: jnp.roll(getattr(batch, name), (1, 2), (-2, -1)) for name in fields}))

    np.testing.assert_allclose(moved("input", "mask", "background"), encode(batch), atol=1e-5)
    assert abs(moved("background") - encode(batch)).max() > 1e-4


@mostly_slow("rate", [0.4, 0.0])
def test_the_innovation_is_observation_minus_prediction(rate, x64):
    simulator = Lorenz63(steps=20, missing_rate=rate)
    batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(0), 64))
    encoder = InnovationEncoderConfig(inner=IdentityEncoderConfig()).build(simulator.spec, nnx.Rngs(0), simulator)
    expected = batch.mask * (batch.input - jax.vmap(simulator.predict)(batch.background))
    for calibrated in (False, True):
        if calibrated:
            encoder.calibrate(batch)
        standardize = encoder.inner.inputs.input
        n = batch.input[0].size
        seen = standardize.inverse(jax.jit(lambda b: encoder(b))(batch)[:, : 2 * n].reshape(64, 2, *batch.input.shape[1:]))
        np.testing.assert_allclose(seen[:, 0] * batch.mask, batch.input * batch.mask, atol=1e-9)
        np.testing.assert_allclose(seen[:, 1] * batch.mask, expected, atol=1e-9)
    assert abs(expected).max() > 1


def test_the_innovation_needs_physics_and_a_background():
    config = InnovationEncoderConfig()
    simulator = Lorenz63(steps=20)
    with pytest.raises(ConfigError, match="expected a simulator with a forward model .*, got none; do "):
        config.build(simulator.spec, nnx.Rngs(0), None)
    with pytest.raises(ConfigError, match="expected a simulator with a forward model .*, got 'two_moons' without one; do "):
        config.build(simulator.spec, nnx.Rngs(0), TwoMoons())
    with pytest.raises(ConfigError, match="expected a simulator with a background .*, got None; do "):
        config.build(TwoMoons().spec, nnx.Rngs(0), simulator)
    encoder = config.build(simulator.spec, nnx.Rngs(0), simulator)
    element = simulator.sample(jax.random.key(0))._replace(background=None)
    with pytest.raises(ConfigError, match="expected a `background` .*, got None; do "):
        encoder(element)


def test_the_control_encoder_needs_a_control_variable():
    for simulator, got in ((None, "None"), (Lorenz63(), "lorenz63")):
        with pytest.raises(ConfigError, match=f"expected a simulator with a control variable, got {got}; do "):
            ControlEncoderConfig().build(Lorenz63().spec, nnx.Rngs(0), simulator)


def test_the_analysis_needs_least_squares():
    for simulator in (None, LinearGaussian.random(2, 3)):
        with pytest.raises(ConfigError, match="expected a least-squares simulator .*, got .*; do "):
            AnalysisEncoderConfig().build(Lorenz63().spec, nnx.Rngs(0), simulator)
    encoder = AnalysisEncoderConfig().build(Lorenz63().spec, nnx.Rngs(0), Lorenz63())
    with pytest.raises(ConfigError, match="expected a `background` .*, got None; do "):
        encoder(Lorenz63().sample(jax.random.key(0))._replace(background=None))


@dataclasses.dataclass(frozen=True)
class Holder:
    encoder: EncoderConfig


@every
def test_a_configuration_survives_json(config):
    assert from_dict(Holder, to_dict(Holder(config))) == Holder(config)


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_negative_sizes_are_refused(kind):
    for field in dataclasses.fields(ENCODERS[kind]):
        if field.type == "int":
            with pytest.raises(ConfigError, match="expected .*, got .*; do "):
                ENCODERS[kind](**{field.name: -1})


def test_a_convolution_over_a_vector_is_refused():
    spec = Batch(jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(ConfigError, match="expected an observation with at least 2 axes, got .*; do "):
        Conv2DEncoderConfig().build(spec, nnx.Rngs(0))
    assert Conv1DEncoderConfig().build(spec, nnx.Rngs(0))(Batch(jnp.zeros(3), jnp.ones(3))).shape == (64,)
    assert MLPEncoderConfig().build(spec, nnx.Rngs(0))(Batch(jnp.zeros(3), jnp.ones(3))).shape == (64,)
