"""Importance quality, forward agreement and TARP: what passes, and what is planted to fail."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.core.config import ConfigError
from vardax_flax.simulators import Lorenz63
from vardax_flax.validation import (
    assert_forward_agreement,
    assert_importance_quality,
    assert_tarp,
    forward_agreement,
    importance_from_log_ratios,
    importance_quality,
    rank_pass,
    tarp,
    tarp_from_ranks,
    to_json,
)

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def observed(known: SimpleNamespace):
    return jax.vmap(known.Gaussian().sample)(jax.random.split(KEY, 40))


def narrow(known: SimpleNamespace):
    return known.GaussianPosterior(covariance=0.3**2 * known.covariance)


def test_the_exact_posterior_has_equal_weights(known: SimpleNamespace, observed) -> None:
    result = importance_quality(known.GaussianPosterior(), known.Gaussian(), observed, key=KEY)
    assert_importance_quality(result)
    assert result.bound == pytest.approx(2 / 3) and np.median(result.details["ess"]) > 990
    json.dumps(to_json(result), allow_nan=False)


def test_a_posterior_that_is_too_narrow_cannot_be_reweighted(known: SimpleNamespace, observed) -> None:
    result = importance_quality(narrow(known), known.Gaussian(), observed, key=KEY)
    with pytest.raises(AssertionError, match=r"importance: expected k̂ <= 0.67 .*, got k̂ = .* event \d+.*; do widen"):
        assert_importance_quality(result)
    assert np.median(result.details["ess"]) < 500


def test_events_without_finite_weights_fail() -> None:
    ratios = np.random.default_rng(0).normal(size=(10, 500))
    assert importance_from_log_ratios(ratios).passed
    for bad in (np.nan, np.inf):
        broken = ratios.copy()
        broken[3, 7] = bad
        result = importance_from_log_ratios(broken)
        assert result.passed is False and "event 3" in result.details["worst"] and result.details["n_broken"] == 1
    ratios[3, :100] = -np.inf  # outside the support
    assert importance_from_log_ratios(ratios).passed
    ratios[3] = -np.inf
    assert importance_from_log_ratios(ratios).passed is False
    assert importance_from_log_ratios(ratios, share=0.2).passed  # one event of ten
    with pytest.raises(ConfigError, match="S >= 100"):
        importance_from_log_ratios(ratios[:, :50])


def emulator(error: float, at: int | None = None):
    simulator = Lorenz63(steps=10)

    def predict(x: jax.Array) -> jax.Array:
        wrong = error if at is None else error * (jnp.abs(x[0] - STATES[at, 0]) < 1e-6)
        return (1 + wrong) * simulator.predict(x)

    return predict, simulator.predict


STATES = jax.vmap(Lorenz63(steps=10).draw_attractor)(jax.random.split(KEY, 20))


def test_an_emulator_within_one_percent_passes() -> None:
    result = assert_forward_agreement(*emulator(0.005), STATES)
    assert result.statistic == pytest.approx(0.005, rel=1e-3) and result.details["relative_error"].shape == (20,)
    json.dumps(to_json(result), allow_nan=False)


@pytest.mark.parametrize(("error", "at"), [(0.02, None), (0.02, 7), (float("nan"), 7)])
def test_an_emulator_that_is_off_at_a_single_state_fails(error: float, at: int | None) -> None:
    where = "7" if at else r"\d+"
    message = rf"forward_agreement: expected a relative error <= 0.01 at every state, got .* \(state {where}.*; do train"
    with pytest.raises(AssertionError, match=message):
        assert_forward_agreement(*emulator(error, at), STATES)


def test_forward_agreement_names_wrong_inputs() -> None:
    with pytest.raises(ConfigError, match="expected predictions of shape"):
        forward_agreement(lambda x: x, Lorenz63(steps=10).predict, STATES)
    with pytest.raises(ConfigError, match="whose predictions are not 0"):
        forward_agreement(lambda x: x, lambda x: 0 * x, STATES)


def test_tarp_accepts_the_exact_posterior(known: SimpleNamespace) -> None:
    result = tarp(known.GaussianPosterior(), known.Gaussian(), key=KEY)
    assert_tarp(result)
    details = result.details
    band = details["band"]
    assert ((band["lower"] <= details["covered"]) & (details["covered"] <= band["upper"])).all()
    json.dumps(to_json(result), allow_nan=False)


@pytest.mark.parametrize(
    "name", ["posterior = prior", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd × 0.8", "sign of the mean flipped"))]
)
def test_tarp_catches(known: SimpleNamespace, name: str) -> None:
    result = tarp(known.defects[name](), known.Gaussian(), key=KEY)
    with pytest.raises(AssertionError, match=r"tarp: expected .* coverage inside its band at 5%, got balls of credibility .*; do train"):
        assert_tarp(result)


def test_tarp_fails_where_draws_are_not_finite_and_needs_its_ranks(known: SimpleNamespace) -> None:
    assert tarp(known.SamplesOnly(0.5), known.Gaussian(), key=KEY, n_runs=60).passed is False
    ranked = rank_pass(known.GaussianPosterior(), known.Gaussian(), key=KEY, n_runs=20, n_samples=9, quantities="marginals")
    with pytest.raises(ConfigError, match="expected ranks of the quantity 'tarp'"):
        tarp_from_ranks(ranked)
