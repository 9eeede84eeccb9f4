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

from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.core.interfaces import Conjugate, ControlVariable, LogJoint, Physics, Simulator
from vardax_flax.simulators import SIMULATORS, LinearGaussian, SimulatorConfig


@functools.cache
def example(kind):
    cls = SIMULATORS[kind]
    return LinearGaussian.random(3, 4, missing_rate=0.1) if cls is LinearGaussian else cls()


@functools.cache
def sampler(simulator):
    """Compiled once for all tests: compiling is what they spend their time on."""
    return jax.jit(jax.vmap(simulator.sample))


def draw(simulator, n, seed=0):
    return sampler(simulator)(jax.random.split(jax.random.key(seed), n))


def has_gaps(kind):
    return "missing_rate" in {f.name for f in dataclasses.fields(SIMULATORS[kind])}


QUICK = ("linear_gaussian", "lorenz63", "two_moons", "sir")  # one of each family; the others take their turn with the slow tests


def having(capability, *also):
    """Over all kinds that have these."""
    return mostly_slow("kind", sorted(k for k, c in SIMULATORS.items() if issubclass(c, capability) and all(f(k) for f in also)), QUICK)


kinds, gappy, gappy_log_joints = having(Simulator), having(Simulator, has_gaps), having(LogJoint, has_gaps)
log_joints, controls, physics = having(LogJoint), having(ControlVariable), having(Physics)


@dataclasses.dataclass(frozen=True)
class Holder:
    simulator: SimulatorConfig


def test_capabilities_are_as_documented():
    capable = {i: {k for k, c in SIMULATORS.items() if issubclass(c, i)} for i in (LogJoint, Conjugate, Physics)}
    assert capable[Conjugate] == {"gp_sites", "linear_gaussian"}
    assert {"linear_gaussian", "lorenz63", "lorenz96", "two_moons", "slcp", "sir"} <= capable[LogJoint]
    assert not {"lorenz63_climatology", "lorenz96_climatology"} & capable[LogJoint]
    assert {"linear_gaussian", "lorenz63", "lorenz63_climatology", "lorenz96", "lorenz96_climatology"} <= capable[Physics]
    assert set(SIMULATORS.values()) == set(typing.get_args(SimulatorConfig))


@kinds
def test_spec_is_what_a_sample_has(kind):
    simulator = example(kind)
    batch = draw(simulator, 8)
    assert isinstance(simulator.spec, Batch)
    for value, expected in zip(batch, simulator.spec, strict=True):
        assert (value is None) == (expected is None)
        if value is not None:
            assert (value.shape, value.dtype) == ((8, *expected.shape), expected.dtype)
    assert batch.mask.shape == batch.input.shape
    assert batch.target is not None


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
    for rows in (slice(0, 4), slice(4, 8)):
        for value, expected in zip(sampler(simulator)(keys[rows]), batch, strict=True):
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
def test_equal_simulators_share_a_trace(kind):
    traces = []

    def shape(simulator, x):
        traces.append(simulator)
        return x + simulator.spec.input.size

    jitted = jax.jit(shape, static_argnums=0)
    jitted(example(kind), 0)
    jitted(from_dict(SIMULATORS[kind], to_dict(example(kind))), 0)
    assert len(traces) == 1


@kinds
def test_double_precision_even_after_single_precision(kind):
    simulator = example(kind)
    compiled = draw(simulator, 8)  # what single precision leaves behind in JAX's caches must not be found again
    assert compiled.input.dtype == np.float32

    def everything(key):
        element = simulator.sample(key)
        values = [value for value in element if value is not None]
        if isinstance(simulator, LogJoint):
            values += [simulator.log_prior(element.target, element), simulator.log_likelihood(element.target, element)]
        if isinstance(simulator, Physics):
            values += [simulator.predict(element.target)]
        return values

    with jax.enable_x64(True):
        dtypes = [value.dtype for value in jax.eval_shape(everything, jax.random.key(0))]
    assert dtypes == [np.float64] * len(dtypes)


@log_joints
def test_log_densities_are_finite_scalars_with_gradients(kind):
    simulator = example(kind)
    batch = draw(simulator, 8)
    joint = lambda x, element: simulator.log_prior(x, element) + simulator.log_likelihood(x, element)  # noqa: E731
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(joint)))(batch.target, batch)
    assert value.shape == (8,) and np.isfinite(value).all()
    assert gradient.shape == batch.target.shape and np.isfinite(gradient).all()


@gappy_log_joints
def test_what_is_not_observed_is_ignored(kind):
    simulator = example(kind)
    element = jax.tree.map(lambda leaf: leaf[0], draw(simulator, 8))
    log_likelihood = jax.jit(jax.value_and_grad(simulator.log_likelihood))
    mask = element.mask.at[..., 0].set(0)
    value, gradient = log_likelihood(element.target, element._replace(input=element.input.at[..., 0].set(jnp.nan), mask=mask))
    assert float(value) == float(log_likelihood(element.target, element._replace(input=element.input * mask, mask=mask))[0])
    assert float(value) != float(log_likelihood(element.target, element)[0])
    assert np.isfinite(gradient).all()
    value, gradient = log_likelihood(element.target, element._replace(mask=jnp.zeros_like(mask)))
    np.testing.assert_allclose(value, 0.0, atol=1e-6)  # nothing observed: the likelihood is 1
    np.testing.assert_array_equal(gradient, 0.0)


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
    none = draw(dataclasses.replace(example(kind), missing_rate=0.0), 8)  # what the other tests compiled, where 0 is the default
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


@controls
def test_white_noise_makes_states_and_misfits(kind):
    """The prior by w ~ N(0, I) has the moments of the samples; where w made the observation, the misfit is the noise."""
    simulator = example(kind)
    batch = draw(simulator, 32)
    w = jax.random.normal(jax.random.key(1), (32, *simulator.control_shape))
    states = np.asarray(jax.jit(jax.vmap(simulator.state))(w, batch))
    assert states.shape == batch.target.shape
    assert abs(states.std() / np.asarray(batch.target).std() - 1) < 0.3
    element = jax.tree.map(lambda leaf: leaf[0], batch)
    misfit = jax.jit(simulator.misfit)
    hidden = element._replace(input=jnp.where(element.mask > 0, element.input, jnp.nan))
    assert misfit(w[0], element).shape == element.input.shape
    np.testing.assert_array_equal(misfit(w[0], hidden), misfit(w[0], element))
    np.testing.assert_array_equal(np.asarray(misfit(w[0], element))[np.asarray(element.mask) == 0], 0)
