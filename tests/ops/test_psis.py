"""The tail of importance weights: known shapes, and what smoothing does to known averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vardax_flax.ops import psis
from vardax_flax.ops.psis import shape_limit, tail_length

smooth, fit_pareto = jax.jit(psis.smooth), jax.jit(psis.fit_pareto)


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.4, 0.9])
def test_shape_and_scale_of_generalised_pareto_draws(k, x64):
    draws = np.sort(stats.genpareto.rvs(k, scale=2.5, size=(40, 2000), random_state=np.random.default_rng(0)), axis=-1)
    shape, scale = (np.asarray(a) for a in fit_pareto(jnp.asarray(draws)))
    error = max(1 + k, 0.3) / np.sqrt(2000)  # asymptotic standard deviation of the likelihood's
    assert shape.mean() == pytest.approx(k, abs=5 * error / np.sqrt(40) + 0.01) and shape.std() < 2 * error + 0.01
    assert scale.mean() == pytest.approx(2.5, rel=0.03)


@pytest.mark.parametrize(("width", "k"), [(0.8, 0.36), (0.5, 0.75), (1.25, 0.0)])
def test_gaussian_proposals_have_their_tail(width, k):
    """Of r = N(0, 1) / N(0, s²) under N(0, s²), P(r > t) ~ t^(−1/k) with k = 1 − s²; for s > 1 the ratios are bounded."""
    x = width * np.random.default_rng(1).normal(size=(30, 20_000))
    found = smooth(jnp.asarray(-0.5 * x**2 + 0.5 * (x / width) ** 2, jnp.float32))
    shape = np.asarray(found.shape).mean()
    assert shape < 0.05 if width > 1 else shape == pytest.approx(k, abs=0.12)
    assert (np.asarray(found.shape).mean() > shape_limit(20_000)) == (width == 0.5)


def test_smoothed_weights_estimate_better_and_keep_their_sum():
    rng = np.random.default_rng(2)
    x = 0.6 * rng.normal(size=(400, 1000))
    ratios = -0.5 * x**2 + 0.5 * (x / 0.6) ** 2
    smoothed = np.exp(np.asarray(smooth(jnp.asarray(ratios, jnp.float32)).log_weights))
    raw = np.exp(ratios - ratios.max(axis=1, keepdims=True))
    raw /= raw.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(smoothed.sum(axis=1), 1, rtol=1e-5)
    error = lambda w: np.sqrt(np.mean(((w * x**2).sum(axis=1) - 1) ** 2))  # noqa: E731
    assert error(smoothed) < 0.95 * error(raw)
    order = np.argsort(ratios[0])
    assert (np.diff(smoothed[0][order]) >= -1e-9).all() and (smoothed[0][order[: -tail_length(1000)]] > 0).all()


def test_equal_weights_have_no_tail_and_all_the_sample():
    found = smooth(jnp.zeros((3, 200)))
    assert (np.asarray(found.shape) == -np.inf).all()
    np.testing.assert_allclose(found.ess, 200, rtol=1e-5)
    rounded = smooth(1e-6 * jnp.round(3 * jax.random.normal(jax.random.key(0), (3, 200))))
    assert (np.asarray(rounded.shape) == -np.inf).all()
    outside = smooth(jnp.where(jnp.arange(200) < 150, -jnp.inf, 0.0))
    np.testing.assert_allclose(outside.ess, 50, rtol=1e-5)


def test_limits_are_as_published():
    assert [shape_limit(n) for n in (100, 1000, 10_000)] == pytest.approx([0.5, 2 / 3, 0.7])
    assert [tail_length(n) for n in (100, 1000)] == [20, 95]
    assert jax.eval_shape(smooth, jnp.zeros((2, 5, 100))).shape.shape == (2, 5)
