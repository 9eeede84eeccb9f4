"""Multivariate normals against SciPy and against brute-force conditioning of the joint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vardax_flax.ops.gaussian import condition, kl_gaussians, log_prob, standard_log_prob


def covariance(rng, *shape):
    root = rng.normal(size=(*shape, shape[-1] + 2))
    return root @ np.swapaxes(root, -1, -2)


@pytest.mark.parametrize("dim", [1, 4, 12])
def test_log_prob_is_that_of_scipy(dim, x64):
    rng = np.random.default_rng(0)
    mean, cov, x = rng.normal(size=dim), covariance(rng, dim), rng.normal(size=(6, dim))
    expected = stats.multivariate_normal(mean, cov).logpdf(x)
    np.testing.assert_allclose(log_prob(x, mean, np.linalg.cholesky(cov)), expected, rtol=1e-12)
    np.testing.assert_allclose(standard_log_prob(jnp.asarray(x)), stats.norm.logpdf(x).sum(-1), rtol=1e-12)


def test_leading_axes_broadcast(x64):
    rng = np.random.default_rng(1)
    x, mean, chol = rng.normal(size=(5, 1, 3)), rng.normal(size=(2, 3)), np.linalg.cholesky(covariance(rng, 2, 3))
    result = log_prob(x, mean, chol)
    assert result.shape == (5, 2)
    for i in range(5):
        for j in range(2):
            np.testing.assert_allclose(result[i, j], log_prob(x[i, 0], mean[j], chol[j]), rtol=1e-12)
    kl = kl_gaussians(mean, covariance(rng, 2, 3), x[:, 0][:, None], np.eye(3))
    assert kl.shape == (5, 2)
    posterior_mean, posterior_cov = condition(mean, np.eye(3), rng.normal(size=(4, 3)), np.eye(4), rng.normal(size=(5, 1, 4)))
    assert posterior_mean.shape == (5, 2, 3) and posterior_cov.shape == (5, 2, 3, 3)


@pytest.mark.parametrize("obs_dim", [2, 4, 7])
def test_condition_is_the_conditional_of_the_joint(x64, obs_dim):
    rng = np.random.default_rng(obs_dim)
    mean, cov, operator = rng.normal(size=4), covariance(rng, 4), rng.normal(size=(obs_dim, 4))
    noise_cov, y = covariance(rng, obs_dim), rng.normal(size=obs_dim)
    cross = cov @ operator.T
    gain = cross @ np.linalg.inv(operator @ cross + noise_cov)
    result_mean, result_cov = condition(mean, cov, operator, noise_cov, y)
    np.testing.assert_allclose(result_mean, mean + gain @ (y - operator @ mean), atol=1e-10)
    np.testing.assert_allclose(result_cov, cov - gain @ cross.T, atol=1e-10)


def test_condition_stays_positive_definite_in_float32_with_near_perfect_observations():
    operator = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1e-3]])
    prior = 1e3 * jnp.eye(3)
    mean, cov = condition(jnp.zeros(3), prior, operator, 1e-4 * jnp.eye(2), jnp.array([1.0, 1.0]))
    with jax.enable_x64(True):
        arguments = (np.zeros(3), prior, operator, 1e-4 * np.eye(2), np.ones(2))
        exact_mean, exact_cov = condition(*(np.asarray(a, np.float64) for a in arguments))
    assert np.linalg.eigvalsh(np.asarray(cov, np.float64)).min() > 0
    np.testing.assert_allclose(mean, exact_mean, atol=1e-2)
    np.testing.assert_allclose(np.diag(cov), np.diag(exact_cov), rtol=1e-2)


def test_kl_is_the_textbook_formula_and_zero_only_for_equal_distributions(x64):
    rng = np.random.default_rng(2)
    (mean_p, mean_q), p, q = rng.normal(size=(2, 3)), covariance(rng, 3), covariance(rng, 3)
    shift = mean_q - mean_p
    inverse = np.linalg.inv(q)
    expected = 0.5 * (np.trace(inverse @ p) - 3 + shift @ inverse @ shift + np.linalg.slogdet(q)[1] - np.linalg.slogdet(p)[1])
    np.testing.assert_allclose(kl_gaussians(mean_p, p, mean_q, q), expected, rtol=1e-12)
    np.testing.assert_allclose(kl_gaussians(mean_p, p, mean_p, p), 0.0, atol=1e-14)
    assert abs(float(kl_gaussians(mean_q, q, mean_p, p)) - expected) > 0.1  # the order of the arguments matters


def test_kl_is_the_expected_log_ratio(x64):
    rng = np.random.default_rng(3)
    mean_p, p, mean_q, q = rng.normal(size=2), covariance(rng, 2), rng.normal(size=2), covariance(rng, 2)
    chol_p = np.linalg.cholesky(p)
    x = mean_p + rng.normal(size=(200_000, 2)) @ chol_p.T
    ratio = np.asarray(log_prob(x, mean_p, chol_p) - log_prob(x, mean_q, np.linalg.cholesky(q)))
    error = 5 * ratio.std() / np.sqrt(len(ratio))
    np.testing.assert_allclose(kl_gaussians(mean_p, p, mean_q, q), ratio.mean(), atol=error)
