"""Pareto smoothing: tails of known shape, closed forms, and weights nobody can use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.core.config import ConfigError
from vardax_flax.ops.psis import k_limit, psis


def pareto(k, n, repeats, seed=0):
    """Log weights with a generalized Pareto tail of shape k: σ = 1, location 1."""
    u = np.random.default_rng(seed).uniform(size=(repeats, n))
    return jnp.asarray(np.log1p((u ** (-k) - 1) / k), jnp.float32)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.9])
def test_the_shape_of_a_tail_is_found(k):
    n, repeats = 20_000, 40
    _, k_hat = jax.jit(psis)(pareto(k, n, repeats))
    tail = 3 * np.sqrt(n)
    expected = (tail * k + 5) / (tail + 10)  # ten observations' worth of prior at 1/2
    error = (1 + abs(k)) / np.sqrt(tail * repeats)
    assert abs(float(k_hat.mean()) - expected) < 4 * error + 0.01
    assert 0.5 * (1 + k) / np.sqrt(tail) < float(k_hat.std()) < 2 * (1 + abs(k)) / np.sqrt(tail)


def test_equal_weights_stay_equal():
    weights, k_hat = psis(jnp.full((3, 400), 7.0))
    np.testing.assert_allclose(weights, -np.log(400), rtol=1e-6)
    assert k_hat.tolist() == [0, 0, 0]


def test_smoothing_keeps_order_sum_and_body():
    raw = pareto(0.7, 400, 3)
    weights, _ = psis(raw)
    np.testing.assert_allclose(np.exp(weights).sum(axis=-1), 1, rtol=1e-5)
    assert (np.argsort(weights, axis=-1) == np.argsort(raw, axis=-1)).all()
    body = np.argsort(raw, axis=-1)[:, :-60]
    shift = np.take_along_axis(np.asarray(weights - raw), body, axis=-1)
    np.testing.assert_allclose(shift, shift[:, :1] * np.ones_like(shift), atol=1e-4)


def test_constants_and_leading_axes_do_not_matter():
    raw = pareto(0.4, 400, 3)
    weights, k_hat = psis(raw)
    again, k_again = psis((raw + 300.0)[:, None])
    np.testing.assert_allclose(k_again.reshape(-1), k_hat, atol=2e-3)
    np.testing.assert_allclose(again[:, 0], weights, atol=1e-3)


def test_the_error_of_an_average_falls():
    # weights of p = N(0, 1) under q = N(0, 0.7²): ∫ w² is infinite, the second moment under p is 1
    x = 0.7 * jax.random.normal(jax.random.key(0), (400, 1000))
    raw = -0.5 * x**2 + 0.5 * (x / 0.7) ** 2
    plain = (jax.nn.softmax(raw, axis=-1) * x**2).sum(axis=-1)
    weights, k_hat = psis(raw)
    smooth = (jnp.exp(weights) * x**2).sum(axis=-1)
    assert float(((smooth - 1) ** 2).mean()) < float(((plain - 1) ** 2).mean())
    assert 0.3 < float(k_hat.mean()) < 0.7  # in law 1 − 0.7² = 0.51


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_weights_that_are_no_numbers_are_not_trusted(bad):
    _, k_hat = psis(jnp.zeros((3, 400)).at[1, 3].set(bad))
    assert k_hat.tolist() == [0, jnp.inf, 0]


def test_few_positive_weights_are_not_trusted():
    raw = jnp.full((3, 400), -jnp.inf).at[:, :4].set(jnp.arange(4.0))
    weights, k_hat = psis(raw)
    assert (k_hat == jnp.inf).all()
    assert jnp.isneginf(weights[:, 4:]).all() and jnp.isfinite(weights[:, :4]).all()


def test_zero_weights_are_allowed():
    raw = pareto(0.3, 400, 3).at[:, :200].set(-jnp.inf)
    weights, k_hat = psis(raw)
    assert jnp.isfinite(k_hat).all() and jnp.isneginf(weights[:, :200]).all()


def test_too_few_weights():
    with pytest.raises(ConfigError, match="at least 25 weights"):
        psis(jnp.zeros(20))


def test_the_limit():
    assert k_limit(100) == 0.5 and k_limit(10_000) == 0.7
