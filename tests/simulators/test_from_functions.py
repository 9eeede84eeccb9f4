"""The user's own functions: what they know decides the type, and what they get wrong is said in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import LogJoint, Physics
from vardax_flax.simulators import FromFunctions, FromFunctionsLogJoint, LinearGaussian, from_functions

LINE = r"^expected [^\n]*, got [^\n]*; do [^\n]*$"


def prior(key):
    return jax.random.normal(key, (2,))


def forward(x):
    return jnp.array([[1.0, 1.0], [0.0, 2.0], [1.0, -1.0]]) @ x


def log_prior(x):
    return jnp.sum(-0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi))


def laplace(key, y):
    return y + 0.3 * jax.random.laplace(key, y.shape)


def laplace_log_likelihood(x, element):
    return jnp.sum(element.mask * (-jnp.abs(element.input - forward(x)) / 0.3 - jnp.log(0.6)))


def test_capability_is_the_type():
    plain = from_functions(prior, forward, 0.5)
    assert isinstance(plain, FromFunctions) and isinstance(plain, Physics) and not isinstance(plain, LogJoint)
    assert isinstance(from_functions(prior, forward, laplace), FromFunctions)
    gaussian = from_functions(prior, forward, 0.5, log_prior)
    own = from_functions(prior, forward, laplace, log_prior, laplace_log_likelihood)
    for known in (gaussian, own):
        assert isinstance(known, FromFunctionsLogJoint) and isinstance(known, LogJoint) and isinstance(known, Physics)
    assert hash(plain) == hash(from_functions(prior, forward, 0.5))


def test_it_is_the_linear_gaussian_when_that_is_what_the_user_writes(x64):
    own = from_functions(prior, forward, 0.5, log_prior, missing_rate=0.3)
    exact = LinearGaussian.from_arrays(np.zeros(2), np.eye(2), forward(jnp.eye(2)), 0.25 * np.eye(3), missing_rate=0.3)
    batch = jax.jit(jax.vmap(own.sample))(jax.random.split(jax.random.key(0), 64))
    for density in ("log_prior", "log_likelihood"):
        mine, theirs = (jax.jit(jax.vmap(getattr(simulator, density)))(batch.target, batch) for simulator in (own, exact))
        np.testing.assert_allclose(mine, theirs, rtol=1e-10)
    mean, cov = jax.jit(jax.vmap(exact.posterior))(batch)
    white = jnp.linalg.solve(jnp.linalg.cholesky(cov), (batch.target - mean)[..., None])[..., 0]
    assert stats.kstest(np.asarray(white).ravel(), "norm").pvalue > 1e-3


def test_the_user_noise_and_likelihood_are_used(x64):
    simulator = from_functions(prior, forward, laplace, log_prior, laplace_log_likelihood, missing_rate=0.2)
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), 512))
    residual = np.asarray(batch.input - jax.vmap(simulator.predict)(batch.target))[np.asarray(batch.mask) == 1]
    assert stats.kstest(residual / 0.3, "laplace").pvalue > 1e-3
    assert stats.kstest(residual / residual.std(), "norm").pvalue < 1e-3
    expected = (stats.laplace.logpdf(batch.input, jax.vmap(forward)(batch.target), 0.3) * np.asarray(batch.mask)).sum(axis=1)
    np.testing.assert_allclose(jax.jit(jax.vmap(simulator.log_likelihood))(batch.target, batch), expected, rtol=1e-10)


def test_field_states_keep_their_shape():
    simulator = from_functions(lambda key: jax.random.normal(key, (4, 5)), lambda x: x[::2].ravel(), 0.1)
    spec = simulator.spec
    assert (spec.target.shape, spec.input.shape, spec.mask.shape) == ((4, 5), (10,), (10,))


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"sample_prior": lambda key: {"a": jax.random.normal(key, (2,))}}, "sample_prior"),
        ({"sample_prior": lambda key: jax.random.randint(key, (2,), 0, 3)}, "sample_prior"),
        ({"sample_prior": lambda key: jax.random.normal(key)}, "sample_prior"),
        ({"sample_prior": lambda: jnp.zeros(2)}, "sample_prior"),
        ({"forward": lambda x: jnp.sum(x)}, "forward"),
        ({"forward": lambda x: jnp.round(x).astype(int)}, "forward"),
        ({"forward": lambda x: (x, x)}, "forward"),
        ({"forward": lambda x: np.asarray(x) ** 2}, "forward"),
        ({"forward": lambda x: jnp.eye(3) @ x}, "forward"),
        ({"noise": lambda key, y: y[:1]}, "noise"),
        ({"noise": lambda y: y}, "noise"),
        ({"noise": 0.0}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"log_prior": lambda x: -(x**2)}, "log_prior"),
        ({"log_prior": log_prior, "log_likelihood": lambda x, element: element.input - forward(x)}, "log_likelihood"),
        ({"log_likelihood": laplace_log_likelihood}, "log_prior"),
        ({"log_prior": log_prior, "noise": laplace}, "log_likelihood"),
        ({"missing_rate": 1.0}, "missing_rate"),
        ({"missing_rate": -0.5, "noise": laplace}, "missing_rate"),
    ],
)
def test_what_the_user_gets_wrong_is_one_line_that_names_the_function(bad, name):
    with pytest.raises(ConfigError, match=LINE) as error:
        from_functions(**{"sample_prior": prior, "forward": forward, "noise": 0.5} | bad)
    assert name in str(error.value)
