"""Ensemble scores and C2ST against closed forms and an independent implementation; results as JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from scipy import stats

from vardax_flax.core.config import ConfigError
from vardax_flax.validation import GateResult, assert_passed, crps, ensemble_scores, rmse, skipped, spread_skill, to_json
from vardax_flax.validation.c2st import c2st


@pytest.mark.parametrize("m", [2, 3, 10, 101])
def test_crps_matches_scoringrules(m: int, x64: None) -> None:
    rng = np.random.default_rng(m)
    samples, truth = 5 + rng.standard_t(3, size=(40, m, 4)), 5 + rng.normal(size=(40, 4))
    expected = scoringrules.crps_ensemble(truth, samples, m_axis=1, estimator="fair")
    np.testing.assert_allclose(crps(samples, truth), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(crps(np.moveaxis(samples, 1, 0), truth, axis=0), expected, rtol=1e-10, atol=1e-12)


def test_crps_by_hand_and_without_bias(x64: None) -> None:
    np.testing.assert_allclose(crps(np.array([[0.0, 1.0]]), np.array([0.5])), [0.0], atol=1e-15)
    np.testing.assert_allclose(crps(np.array([[0.0, 1.0, 5.0]]), np.array([2.0])), [2 - 10 / 6])
    rng = np.random.default_rng(0)  # E CRPS of N(0, 1) against its own draw is 1/√π for every m
    for m in (2, 3, 20):
        assert crps(rng.normal(size=(100000, m)), rng.normal(size=100000)).mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.008)


def test_crps_keeps_its_digits_far_from_zero() -> None:
    rng = np.random.default_rng(1)
    samples, truth = (300 + rng.normal(size=(50, 500))).astype(np.float32), (300 + rng.normal(size=50)).astype(np.float32)
    with jax.enable_x64(True):
        exact = np.asarray(crps(samples.astype(float), truth.astype(float)))
    np.testing.assert_allclose(crps(samples, truth), exact, atol=1e-5)


@pytest.mark.parametrize("m", [2, 10, 50])
def test_a_perfect_ensemble_has_spread_equal_to_error(m: int, x64: None) -> None:
    draws = np.random.default_rng(m).normal(size=(60000, m + 1, 2)) * [1.0, 3.0]
    assert spread_skill(draws[:, 1:], draws[:, 0]) == pytest.approx(1.0, abs=0.01)
    noise = np.random.default_rng(99).normal(size=(60000, 2)) * 2.0
    assert spread_skill(draws[:, 1:], draws[:, 0] + noise, observation_variance=4.0) == pytest.approx(1.0, abs=0.01)
    assert spread_skill(0.5 * draws[:, 1:], draws[:, 0]) < 0.7


def test_rmse_by_hand() -> None:
    assert rmse(jnp.array([[0.0, 2.0], [1.0, 3.0]]), jnp.array([1.0, 5.0])) == pytest.approx(np.sqrt(9 / 2))


def test_scores_report_a_flat_histogram_for_a_perfect_ensemble() -> None:
    draws = np.random.default_rng(5).normal(size=(20000, 10)).astype(np.float32)
    result = ensemble_scores(draws[:, 1:], draws[:, 0], key=jax.random.key(0))
    assert result.passed is None and result.statistic == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)
    assert result.details["rank_histogram"].shape == (10,)
    assert stats.chisquare(result.details["rank_histogram"]).pvalue > 1e-3
    json.dumps(to_json(result), allow_nan=False)
    narrow = ensemble_scores(0.5 * draws[:, 1:], draws[:, 0], key=jax.random.key(0)).details["rank_histogram"]
    assert narrow[0] > 2 * narrow[5] < narrow[-1]


def test_scores_refuse_what_they_cannot_judge() -> None:
    result = ensemble_scores(np.array([[0.0, np.nan]]), np.array([1.0]), key=jax.random.key(0))
    assert result.passed is False
    with pytest.raises(AssertionError, match="expected finite members, got 1 non-finite value"):
        assert_passed(result)
    with pytest.raises(ConfigError, match="expected truth of shape"):
        crps(np.zeros((4, 5, 2)), np.zeros((5, 2)))
    with pytest.raises(ConfigError, match="expected at least 2 members"):
        spread_skill(np.zeros((4, 1)), np.zeros(4))


def test_c2st_separates_what_differs_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    assert 0.42 < c2st(p, q) < 0.58
    assert c2st(p, q + 8) > 0.99
    shifted = c2st(p, rng.normal(size=(400, 2)) + [1.5, 0])  # the best classifier is right with probability Φ(0.75) = 0.77
    assert shifted == pytest.approx(stats.norm.cdf(0.75), abs=0.05)
    assert c2st(1e3 * p + 5, 1e3 * q + 5) == pytest.approx(c2st(p, q), abs=0.03)
    with pytest.raises(ConfigError, match="expected two samples"):
        c2st(p, q[:, :1])
    with pytest.raises(ConfigError, match="constant component 1"):
        c2st(p * [1, 0], q)


def test_results_become_plain_json() -> None:
    details = {"a": np.array([1.0, np.nan]), "b": {"c": (np.int64(3), jnp.ones(2))}, "d": None, "e": np.bool_(True)}
    value = to_json(GateResult("g", True, float("inf"), 0.5, None, "ok", details))
    assert value["statistic"] is None and value["details"] == {"a": [1.0, None], "b": {"c": [3, [1.0, 1.0]]}, "d": None, "e": True}
    with pytest.raises(TypeError, match="expected arrays and plain values"):
        to_json(GateResult("g", True, 0.0, 0.5, None, "ok", {"x": object()}))


def test_a_skipped_gate_is_no_pass() -> None:
    result = skipped("sbc", "no prior is known")
    assert result.passed is None and to_json(result)["details"] == {"skipped": "no prior is known"}
    with pytest.raises(AssertionError, match="sbc: expected a verdict, got none .skipped: no prior is known"):
        assert_passed(result)
