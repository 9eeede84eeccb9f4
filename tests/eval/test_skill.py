"""Skill: the prior never passes, and the exact posterior does, however little the observation says."""

import jax
import numpy as np
import pytest

from eval.scores import score
from eval.skill import baselines, skill, skill_table
from vardax_flax.simulators import LinearGaussian

EVENTS, POOL, DRAWS = 100, 1000, 400


def case(noise_std):
    """A state of two from two observations: windows, predictors, exact draws and exact densities."""
    simulator = LinearGaussian.from_arrays(np.zeros(2), np.eye(2), np.eye(2), noise_std**2 * np.eye(2))
    both = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(1), EVENTS + POOL))
    batch, others = (jax.tree.map(lambda leaf, rows=rows: leaf[rows], both) for rows in (slice(EVENTS), slice(EVENTS, None)))
    gain = 1 / (1 + noise_std**2)
    mean, sd = gain * np.asarray(batch.input, np.float64), noise_std * np.sqrt(gain)
    noise = np.random.default_rng(0).normal(size=(EVENTS, DRAWS, 2))
    truth = np.asarray(batch.target, np.float64)
    nats = (-np.log(sd) - 0.5 * ((truth - mean) / sd) ** 2 + 0.5 * truth**2).sum(axis=1)
    exact, prior = score(mean[:, None] + sd * noise, truth), score(noise, truth)
    return baselines(simulator, batch, others, jax.random.key(2)), exact, prior, nats


@pytest.fixture(scope="module")
def informative():
    return case(0.3)


@pytest.fixture(scope="module")
def weak():
    return case(1.5)


def test_predictors_score_what_the_prior_is(informative):
    base, exact, _, _ = informative
    for name in ("climatology", "prior"):
        assert base.scored[name].rmse(base.scale) == pytest.approx(1, abs=0.15)
        assert base.scored[name].mean_crps(base.scale) == pytest.approx(1 / np.sqrt(np.pi), abs=0.08)  # E CRPS of N(0, 1) for itself
    assert base.scored["constant"].mean_crps(base.scale) == pytest.approx(np.sqrt(2 / np.pi), abs=0.12)
    assert exact.rmse() <= base.ridge.rmse() < 0.5


@pytest.mark.parametrize("with_oracle", [True, False])
@pytest.mark.parametrize("with_density", [True, False])
def test_the_exact_posterior_has_skill(informative, weak, with_oracle, with_density):
    for base, exact, _, nats in (informative, weak):
        result = skill(exact, base, exact if with_oracle else None, nats if with_density else None)
        assert result.passed is True, result.summary


@pytest.mark.parametrize("with_oracle", [True, False])
@pytest.mark.parametrize("with_density", [True, False])
def test_the_prior_has_none(informative, weak, with_oracle, with_density):
    for base, exact, prior, nats in (informative, weak):
        result = skill(prior, base, exact if with_oracle else None, 0 * nats if with_density else None)
        assert result.passed is False, result.summary


def test_the_limit_is_the_oracles_where_the_observation_says_little(informative, weak):
    base, exact, _, nats = weak
    result = skill(exact, base, exact, nats)
    assert result.bound < 2 and "the problem says little" in result.summary
    assert skill(informative[1], informative[0], informative[1], None).bound == 2


def test_half_of_what_could_be_learned_is_not_enough(informative):
    base, exact, prior, nats = informative
    lazy = exact._replace(mean=0.4 * exact.mean + 0.6 * prior.mean, crps=0.4 * exact.crps + 0.6 * prior.crps)
    assert skill(lazy, base, exact, 0.4 * nats).passed is False
    assert skill(lazy, base, None, 0.4 * nats).passed is False  # the regression finds more


def test_answers_that_are_not_finite_fail(informative):
    base, exact, _, nats = informative
    broken = exact._replace(mean=exact.mean * np.nan)
    assert skill(broken, base, exact, nats).passed is False
    assert skill(exact, base, exact, nats * np.nan).passed is not None


def test_the_table_has_a_row_for_each(informative):
    base, exact, _, nats = informative
    rows = skill_table(exact, base, exact, nats)["rows"]
    assert [row[0] for row in rows] == ["amortized", "oracle", "kernel ridge regression", "climatology", "constant", "prior"]
    assert rows[0][2] == rows[0][4] == 1 and all(row[2] > 1.5 for row in rows[3:])
