"""What every registered simulator promises: shapes, purity, configuration, precision, gaps. A new one is picked up by itself."""

import dataclasses
import functools
import json
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.core.interfaces import Conjugate, LogJoint, Physics
from vardax_flax.simulators import SIMULATORS, LinearGaussian, SimulatorConfig


@functools.cache
def example(kind):
    cls = SIMULATORS[kind]
    return LinearGaussian.random(3, 4, missing_rate=0.1) if cls is LinearGaussian else cls()


def draw(simulator, n, seed=0):
    return jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(seed), n))


def has_gaps(kind):
    return "missing_rate" in {f.name for f in dataclasses.fields(SIMULATORS[kind])}


kinds = pytest.mark.parametrize("kind", sorted(SIMULATORS))
gappy = pytest.mark.parametrize("kind", sorted(filter(has_gaps, SIMULATORS)))
gappy_log_joints = pytest.mark.parametrize("kind", sorted(k for k, c in SIMULATORS.items() if issubclass(c, LogJoint) and has_gaps(k)))
log_joints = pytest.mark.parametrize("kind", sorted(k for k, c in SIMULATORS.items() if issubclass(c, LogJoint)))
physics = pytest.mark.parametrize("kind", sorted(k for k, c in SIMULATORS.items() if issubclass(c, Physics)))


@dataclasses.dataclass(frozen=True)
class Holder:
    simulator: SimulatorConfig


def test_capabilities_are_as_documented():
    having = {i: {k for k, c in SIMULATORS.items() if issubclass(c, i)} for i in (LogJoint, Conjugate, Physics)}
    assert having[Conjugate] == {"linear_gaussian"}
    assert {"linear_gaussian", "lorenz63", "lorenz96", "two_moons"} <= having[LogJoint]
    assert not {"lorenz63_climatology", "lorenz96_climatology"} & having[LogJoint]
    assert {"linear_gaussian", "lorenz63", "lorenz63_climatology", "lorenz96", "lorenz96_climatology"} <= having[Physics]
    assert set(SIMULATORS.values()) == set(typing.get_args(SimulatorConfig))


@kinds
def test_spec_is_what_a_sample_has(kind):
    simulator = example(kind)
    element = simulator.sample(jax.random.key(0))
    for value, expected in zip(element, simulator.spec, strict=True):
        assert (value is None) == (expected is None)
        if value is not None:
            assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
    assert element.mask.shape == element.input.shape
    assert element.target is not None


@kinds
def test_a_batch_is_finite_varied_and_independent_of_how_it_is_chunked(kind):
    simulator = example(kind)
    batch = draw(simulator, 8)
    for name, value in batch._asdict().items():
        if value is not None:
            assert np.isfinite(value).all(), name
    assert len(np.unique(np.asarray(batch.target).reshape(8, -1), axis=0)) == 8
    assert len(np.unique(np.asarray(batch.input).reshape(8, -1), axis=0)) == 8
    keys = jax.random.split(jax.random.key(0), 8)
    half = jax.jit(jax.vmap(simulator.sample))
    for rows in (slice(0, 4), slice(4, 8)):
        for value, expected in zip(half(keys[rows]), batch, strict=True):
            if value is not None:
                np.testing.assert_allclose(value, expected[rows], rtol=1e-3, atol=1e-3)


@kinds
def test_json_round_trip_and_hash(kind):
    simulator = example(kind)
    text = json.dumps(to_dict(Holder(simulator)), allow_nan=False)
    back = from_dict(Holder, json.loads(text)).simulator
    assert type(back) is type(simulator) and back == simulator and hash(back) == hash(simulator)
    assert json.loads(text)["simulator"]["kind"] == kind


@kinds
def test_it_is_static_under_jit(kind):
    traces = []

    def sample(simulator, key):
        traces.append(simulator)
        return simulator.sample(key)

    jitted = jax.jit(sample, static_argnums=0)
    jitted(example(kind), jax.random.key(0))
    jitted(example(kind), jax.random.key(1))
    assert len(traces) == 1


@kinds
def test_double_precision(kind, x64):
    simulator = example(kind)
    element = simulator.sample(jax.random.key(0))
    assert all(value.dtype == np.float64 for value in element if value is not None)
    if isinstance(simulator, LogJoint):
        assert simulator.log_prior(element.target, element).dtype == np.float64
        assert simulator.log_likelihood(element.target, element).dtype == np.float64
    if isinstance(simulator, Physics):
        assert simulator.predict(element.target).dtype == np.float64


@log_joints
def test_log_densities_are_finite_scalars_with_gradients(kind):
    simulator = example(kind)
    batch = draw(simulator, 16)
    joint = lambda x, element: simulator.log_prior(x, element) + simulator.log_likelihood(x, element)  # noqa: E731
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(joint)))(batch.target, batch)
    assert value.shape == (16,) and np.isfinite(value).all()
    assert gradient.shape == batch.target.shape and np.isfinite(gradient).all()


@gappy_log_joints
def test_what_is_not_observed_is_ignored(kind, x64):
    simulator = example(kind)
    element = simulator.sample(jax.random.key(0))
    mask = element.mask.at[..., 0].set(0)
    poisoned = element._replace(input=element.input.at[..., 0].set(jnp.nan), mask=mask)
    clean = element._replace(input=jnp.where(mask > 0, element.input, 0), mask=mask)
    value, gradient = jax.value_and_grad(simulator.log_likelihood)(element.target, poisoned)
    assert float(value) == float(simulator.log_likelihood(element.target, clean))
    assert np.isfinite(gradient).all()
    assert float(value) != float(simulator.log_likelihood(element.target, element))


@gappy_log_joints
def test_without_observations_the_likelihood_is_one(kind, x64):
    simulator = example(kind)
    element = simulator.sample(jax.random.key(0))
    nothing = element._replace(input=jnp.zeros_like(element.input), mask=jnp.zeros_like(element.mask))
    np.testing.assert_allclose(simulator.log_likelihood(element.target, nothing), 0.0, atol=1e-14)


@physics
def test_predict_has_the_shape_of_the_observation_and_the_noise_is_centred_on_it(kind, x64):
    simulator = dataclasses.replace(example(kind), missing_rate=0.2)
    batch = draw(simulator, 256)
    clean = jax.jit(jax.vmap(simulator.predict))(batch.target)
    assert clean.shape == batch.input.shape
    std = simulator.noise_std if hasattr(simulator, "noise_std") else np.sqrt(np.diag(np.array(simulator.noise_cov)))
    white = np.asarray((batch.input - clean) / std)[np.asarray(batch.mask) == 1]
    assert stats.kstest(white, "norm").pvalue > 1e-3


@gappy
def test_missing_rate_is_honoured(kind):
    none = draw(dataclasses.replace(example(kind), missing_rate=0.0), 8)
    assert (np.asarray(none.mask) == 1).all()
    batch = draw(dataclasses.replace(example(kind), missing_rate=0.3), 512)
    mask = np.asarray(batch.mask)
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert (np.asarray(batch.input)[mask == 0] == 0).all()
    lost = int((mask == 0).sum())
    assert stats.binomtest(lost, mask.size, 0.3).pvalue > 1e-3


@gappy
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_out_of_range_are_an_error(kind, rate):
    with pytest.raises(ConfigError, match="expected missing_rate in .*, got .*; do"):
        dataclasses.replace(example(kind), missing_rate=rate)


@kinds
def test_a_misspelt_field_names_the_closest(kind):
    value = to_dict(example(kind)) | {"missing_rat": 0.1}
    with pytest.raises(ConfigError, match="missing_rat"):
        from_dict(SIMULATORS[kind], value)


def test_an_element_is_a_batch_without_batch_axis():
    assert all(isinstance(example(kind).spec, Batch) for kind in SIMULATORS)
