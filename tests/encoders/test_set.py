"""The encoder of sets: the order of the points and what pads them are not seen, what can be known of them is."""

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
from vardax_flax.encoders import ProductOfExpertsEncoderConfig, SetEncoderConfig

N, CHANNELS = 7, 2
POOLINGS = ("deepset", "attention")
kinds = mostly_slow("kind", (*POOLINGS, "experts"), ["deepset", "experts"])
poolings = mostly_slow("pooling", POOLINGS)
shapes = mostly_slow("channels", [(CHANNELS,), ()], ids=["channels", "scalar"])


def points(channels=(CHANNELS,), n=N, lead=(5,), seed=0):
    obs = (*lead, n, *channels)
    mask = (np.random.default_rng(seed).uniform(size=obs) < 0.7).astype(np.float32)
    return Batch(
        input=noise(*obs, seed=seed), mask=jnp.asarray(mask), background=noise(*lead, 3, seed=seed + 1),
        coords=noise(*obs, 2, seed=seed + 2), noise_scale=jnp.exp(noise(*obs, seed=seed + 3)), target=noise(*lead, 3, seed=seed + 4),
    )  # fmt: skip


@functools.cache
def built(kind, channels):
    batch = points(channels, lead=(64,))
    spec = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), batch)
    config = ProductOfExpertsEncoderConfig(8) if kind == "experts" else SetEncoderConfig(pooling=kind, features=5, width=8, depth=2)
    encoder = perturb(config.build(spec, nnx.Rngs(0)))
    encoder.calibrate(batch)
    return jax.jit(lambda batch: encoder(batch))


def over_points(function, batch):
    """The batch with a function applied to the axis of the points."""
    names = ("input", "mask", "coords", "noise_scale")
    return batch._replace(**{name: function(getattr(batch, name)) for name in names})


@kinds
@shapes
def test_the_order_of_the_points_is_not_seen(kind, channels):
    encode, batch = built(kind, channels), points(channels)
    order = np.random.default_rng(0).permutation(N)
    plain = np.asarray(encode(batch))
    np.testing.assert_allclose(encode(over_points(lambda field: field[:, order], batch)), plain, atol=1e-5)
    other = encode(batch._replace(input=batch.input[:, order]))  # values at each other's places are other observations
    assert (abs(other - plain).max(axis=-1) > 1e-3).all()


@kinds
@shapes
@pytest.mark.parametrize("filling", [0.0, 1e30, np.nan, np.inf])
def test_padding_is_not_seen(kind, channels, filling):
    encode, batch = built(kind, channels), points(channels)
    padding = lambda field: jnp.full((5, 6, *field.shape[2:]), filling)  # noqa: E731
    padded = over_points(lambda field: jnp.concatenate([field, padding(field)], axis=1), batch)
    padded = padded._replace(mask=jnp.concatenate([batch.mask, jnp.zeros((5, 6, *channels))], axis=1))
    np.testing.assert_allclose(encode(padded), encode(batch), atol=1e-5)


@kinds
def test_the_number_of_points_is_seen(kind):
    """The same observation twice tells more than once."""
    encode, batch = built(kind, ()), points((), n=1)
    batch = batch._replace(mask=jnp.ones_like(batch.mask), noise_scale=jnp.full_like(batch.noise_scale, 0.3))  # instruments that tell
    twice = over_points(lambda field: jnp.concatenate([field, field], axis=1), batch)
    assert (abs(encode(twice) - encode(batch)).max(axis=-1) > 1e-3).all()


@poolings
def test_points_without_coordinates_are_exchangeable_observations(pooling):
    batch = points(())._replace(coords=None, noise_scale=None, background=None)
    spec = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), batch)
    encode = jax.jit(perturb(SetEncoderConfig(pooling=pooling, features=5, width=8).build(spec, nnx.Rngs(0))).__call__)
    np.testing.assert_allclose(encode(batch._replace(input=batch.input[:, ::-1], mask=batch.mask[:, ::-1])), encode(batch), atol=1e-5)
    assert encode(batch).shape == (5, 5)


def test_statistics_are_those_of_all_points():
    batch = points((CHANNELS,), lead=(500,))
    shifted = batch._replace(input=3 + 2 * batch.input, coords=10 + batch.coords)
    spec = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), shifted)
    encoder = SetEncoderConfig().build(spec, nnx.Rngs(0))
    encoder.calibrate(shifted)
    np.testing.assert_allclose(encoder.inputs.input.mean[...], 3, atol=0.2)
    np.testing.assert_allclose(encoder.inputs.input.std[...], 2, atol=0.2)
    np.testing.assert_allclose(encoder.inputs.coords.mean[...], 10, atol=0.2)


def test_an_image_is_no_set():
    field = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    with pytest.raises(ConfigError, match=r"expected an observation of shape \(n,\) or \(n, channels\), got \(2, 3, 4\); do "):
        SetEncoderConfig().build(Batch(field, field), nnx.Rngs(0))
    with pytest.raises(ConfigError, match="expected a width that 3 heads divide, got 64; do "):
        SetEncoderConfig(heads=3)
