"""Agreement with an oracle: what must pass, what must fail, and the closed forms of its scores."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.validation import assert_posterior_agreement, posterior_agreement, to_json

EVENTS = 200


@pytest.fixture(scope="module")
def oracle(known: SimpleNamespace) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EVENTS, 3))
    y = x @ known.design.T + known.noise * rng.normal(size=(EVENTS, 2))
    cov = np.broadcast_to(known.covariance, (EVENTS, 3, 3))
    return SimpleNamespace(mean=y @ known.gain.T, cov=cov, sd=np.sqrt(np.diag(known.covariance)), batch=Batch(y, np.ones_like(y)), rng=rng)


def draw(oracle: SimpleNamespace, n: int, mean: np.ndarray | None = None, cov: np.ndarray | None = None, seed: int = 1) -> np.ndarray:
    mean = oracle.mean if mean is None else mean
    root = np.linalg.cholesky(oracle.cov[0] if cov is None else cov)
    return mean[:, None] + np.random.default_rng(seed).normal(size=(len(mean), n, 3)) @ root.T


def test_the_same_posterior_agrees_in_every_form(oracle: SimpleNamespace) -> None:
    gaussian = (oracle.mean, oracle.cov)
    assert assert_posterior_agreement(gaussian, gaussian, strict=True).statistic == 0.0
    for n in (10, 50, 1000):
        for fast, reference in ((draw(oracle, n), gaussian), (gaussian, draw(oracle, n)), (draw(oracle, n), draw(oracle, n, seed=2))):
            assert_posterior_agreement(fast, reference)


def test_small_samples_of_one_posterior_pass_about_always(oracle: SimpleNamespace) -> None:
    verdicts = [posterior_agreement(draw(oracle, 10, seed=2 * k), draw(oracle, 10, seed=2 * k + 1)).passed for k in range(60)]
    assert sum(verdicts) >= 58


@pytest.mark.parametrize("form", ["gaussian", "draws"])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("mean", r"share of z > 1 <= 0.05"),
        ("flip", r"share of z > 1 <= 0.05"),
        ("wide", r"share of spread ratios outside <= 0.05"),
        ("narrow", r"share of spread ratios outside <= 0.05"),
        ("correlation", r"correlation error <= 0.3"),
        ("prior", r"share of"),
    ],
)
def test_planted_defects_are_caught(oracle: SimpleNamespace, name: str, rule: str, form: str) -> None:
    mean, cov = oracle.mean, oracle.cov[0]
    mean = {"mean": mean + 1.2 * oracle.sd, "flip": -mean, "prior": 0 * mean}.get(name, mean)
    cov = {"wide": 6 * cov, "narrow": cov / 6, "correlation": np.diag(oracle.sd**2), "prior": np.eye(3)}.get(name, cov)
    fast = draw(oracle, 300, mean, cov) if form == "draws" else (mean, np.broadcast_to(cov, oracle.cov.shape))
    with pytest.raises(AssertionError, match=rf"posterior_agreement: expected {rule}.*, got .* \(.*component.*\); do "):
        assert_posterior_agreement(fast, (oracle.mean, oracle.cov))


def test_one_bad_component_among_many_is_caught() -> None:
    mean, cov = np.zeros((50, 40)), np.broadcast_to(np.eye(40), (50, 40, 40))
    shifted = mean.copy()
    shifted[:, 7] = 1.5
    result = posterior_agreement((shifted, cov), (mean, cov))
    assert result.details["rules"][0]["value"] == pytest.approx(1 / 40) and result.details["rules"][0]["passed"]
    assert result.passed is False and "component 7" in result.details["worst"]


def test_a_few_bad_events_pass_by_default_and_fail_when_strict(oracle: SimpleNamespace) -> None:
    mean = oracle.mean.copy()
    mean[11] += 3 * oracle.sd
    assert posterior_agreement((mean, oracle.cov), (oracle.mean, oracle.cov)).passed
    with pytest.raises(AssertionError, match="expected largest z <= 1, got 3 .event 11, component"):
        assert_posterior_agreement((mean, oracle.cov), (oracle.mean, oracle.cov), strict=True)
    assert posterior_agreement((mean, oracle.cov), (oracle.mean, oracle.cov), share=0.001).passed is False


def test_scores_have_their_closed_form(oracle: SimpleNamespace) -> None:
    """Mean moved by half a standard deviation and everything twice as wide."""
    details = posterior_agreement((oracle.mean + 0.5 * oracle.sd, 4 * oracle.cov), (oracle.mean, oracle.cov), spread_ratio=2.5).details
    np.testing.assert_allclose(details["z"], 0.5)
    np.testing.assert_allclose(details["spread_ratio"], 2.0)
    np.testing.assert_allclose(details["kl_marginal"], 0.5 * (4 + 0.25 - 1) - np.log(2))
    shift = 0.25 * oracle.sd @ np.linalg.solve(oracle.cov[0], oracle.sd)
    np.testing.assert_allclose(details["mahalanobis"], shift / 3)
    np.testing.assert_allclose(details["kl_joint"], 0.5 * (12 + shift - 3) - 3 * np.log(2))
    np.testing.assert_allclose(details["correlation_error"], 0, atol=1e-7)


def test_correlation_error_is_free_of_sampling_noise(oracle: SimpleNamespace) -> None:
    c = oracle.cov[0] / np.outer(oracle.sd, oracle.sd)
    independent = draw(oracle, 40, cov=np.diag(oracle.sd**2))
    error = posterior_agreement(independent, (oracle.mean, oracle.cov)).details["correlation_error"]
    np.testing.assert_allclose(error + np.eye(3), np.abs(c), atol=0.05)
    same = posterior_agreement(draw(oracle, 40), (oracle.mean, oracle.cov)).details["correlation_error"]
    assert same.max() < 0.08


def test_thin_samples_have_no_joint_scores_but_a_verdict() -> None:
    draws = np.random.default_rng(3).normal(size=(30, 20, 15))
    result = posterior_agreement(draws, draws)
    assert result.passed and np.isnan(result.details["kl_joint"]).all()
    text = json.dumps(to_json(result), allow_nan=False)
    assert json.loads(text)["details"]["kl_joint"] == [None] * 30


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_posterior_without_finite_spread_fails(oracle: SimpleNamespace, bad: float, strict: bool) -> None:
    draws = draw(oracle, 30)
    if bad == 0.0:
        draws[..., 1] = 0.0
    else:
        draws[:, 0, 1] = bad
    result = posterior_agreement(draws, (oracle.mean, oracle.cov), strict=strict)
    assert result.passed is False


def test_models_draws_can_be_passed_as_they_are(known: SimpleNamespace, oracle: SimpleNamespace) -> None:
    draws = known.GaussianPosterior().sample(oracle.batch, jax.random.key(0), 400)
    assert_posterior_agreement(draws, (oracle.mean, oracle.cov))


def test_wrong_inputs_are_named(oracle: SimpleNamespace) -> None:
    good = (oracle.mean, oracle.cov)
    with pytest.raises(ConfigError, match="expected `p_fast` of shape"):
        posterior_agreement(oracle.mean, good)
    with pytest.raises(ConfigError, match="expected `p_fast` of shapes"):
        posterior_agreement((oracle.mean, oracle.cov[0]), good)
    with pytest.raises(ConfigError, match="do compare the same events"):
        posterior_agreement((oracle.mean[:5], oracle.cov[:5]), good)
    with pytest.raises(ConfigError, match="expected an oracle with spread"):
        posterior_agreement(good, (oracle.mean, 0 * oracle.cov))
