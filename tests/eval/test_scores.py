"""Scores of weighted draws against closed forms."""

import numpy as np
import pytest
from scipy import stats

from eval.scores import score, score_point
from vardax_flax.validation import crps, rmse, spread_skill


def normal(events=200, n=400, dim=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(events, n, dim)), rng.normal(size=(events, dim))


def test_equal_weights_give_the_scores_of_the_library():
    draws, truth = normal()
    found = score(draws, truth)
    np.testing.assert_allclose(found.crps, crps(draws.astype(np.float32), truth.astype(np.float32)), atol=2e-5)
    assert found.rmse() == pytest.approx(float(rmse(draws, truth)), rel=1e-5)
    np.testing.assert_allclose(found.sd, draws.std(axis=1, ddof=1), rtol=1e-10)
    assert found.spread_skill == pytest.approx(float(spread_skill(draws, truth)), rel=5e-3)  # without its (m + 1)/m


def test_weights_turn_one_distribution_into_another():
    rng = np.random.default_rng(1)
    draws, truth = 1.5 * rng.normal(size=(40, 4000, 1)), rng.normal(size=(40, 1))
    weights = stats.norm.pdf(draws[..., 0]) / stats.norm.pdf(draws[..., 0], scale=1.5)
    found = score(draws, truth, weights / weights.sum(axis=1, keepdims=True))
    exact = truth * (2 * stats.norm.cdf(truth) - 1) + 2 * stats.norm.pdf(truth) - 1 / np.sqrt(np.pi)  # Gneiting & Raftery 2007
    np.testing.assert_allclose(found.crps, exact, atol=0.06)
    assert abs(float((found.crps - exact).mean())) < 0.006
    assert abs(float(found.mean.mean())) < 0.01 and float(found.sd.mean()) == pytest.approx(1, abs=0.01)


def test_weights_of_zero_drop_draws():
    draws, truth = normal(events=5, n=40)
    weights = np.concatenate([np.full((5, 20), 1 / 20), np.zeros((5, 20))], axis=1)
    for whole, part in zip(score(draws, truth, weights), score(draws[:, :20], truth), strict=True):
        np.testing.assert_allclose(whole, part, atol=1e-12)


def test_a_point_scores_its_absolute_error():
    truth = np.array([[1.0, -2.0]])
    found = score_point(np.zeros(2), truth)
    assert found.mean_crps() == 1.5 and found.rmse() == pytest.approx(np.sqrt(2.5))
    assert found.rmse(np.array([1.0, 2.0])) == pytest.approx(1.0)
