"""SBC and coverage accept an exact posterior at their nominal rate and catch planted defects."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import Simulator
from vardax_flax.ops.blocks import map_blocks
from vardax_flax.validation import (
    RankPass,
    assert_coverage,
    assert_sbc,
    chi2_uniform,
    coverage,
    coverage_from_ranks,
    rank_pass,
    sbc_from_ranks,
    simulation_based_calibration,
    to_json,
)

# an exact posterior fails one key in twenty by design; `test_size_of_both_gates` measures that rate, the others fix a key that passes
KEY = jax.random.key(0)


def split(ranked: RankPass, size: int) -> list[RankPass]:
    """Independent repetitions out of one long pass."""
    starts = range(0, len(ranked.ranks), size)
    cut = ("ranks", "failed", "zscore", "contraction")
    return [ranked._replace(**{f: getattr(ranked, f)[s : s + size] for f in cut}) for s in starts]


@pytest.mark.slow
def test_exact_posterior_passes_at_the_nominal_rate(known: SimpleNamespace) -> None:
    repeats, size = 50, 200
    ranked = rank_pass(known.GaussianPosterior(), known.Gaussian(), key=KEY, n_runs=repeats * size, n_samples=99)
    for gate in (sbc_from_ranks, coverage_from_ranks):
        failures = sum(not gate(part).passed for part in split(ranked, size))
        assert failures <= stats.binom.ppf(0.999, repeats, 0.05)
    result = sbc_from_ranks(split(ranked, 1000)[0])
    assert result.passed and result.summary.startswith("no evidence of miscalibration at family-wise error 5% (N=1000, L=99, m=8;")
    # every single quantity is uniform over all runs
    assert chi2_uniform(ranked.ranks, 99)[1].min() > 1e-3


@pytest.mark.slow
def test_size_of_both_gates_over_400_repetitions(known: SimpleNamespace) -> None:
    repeats, size = 400, 500
    ranked = rank_pass(known.GaussianPosterior(), known.Gaussian(), key=jax.random.key(21), n_runs=repeats * size, n_samples=99)
    parts = split(ranked, size)
    raw = np.array([sbc_from_ranks(part).details["p_gamma"] for part in parts])
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], repeats, 0.05)
    assert ((raw <= 0.05).sum(axis=0) <= high).all() and ((raw <= 0.05).sum(axis=0) >= low).all()
    for gate in (sbc_from_ranks, coverage_from_ranks):
        assert sum(not gate(part).passed for part in parts) <= stats.binom.ppf(0.999, repeats, 0.05)


def test_sbc_catches_every_planted_defect(known: SimpleNamespace, defect: SimpleNamespace) -> None:
    result = simulation_based_calibration(defect.model, known.Gaussian(), key=KEY)
    assert result.passed is False and result.p_value < 1e-3
    with pytest.raises(AssertionError, match=r"sbc: expected no adjusted p-value at or below 0.05, got p = .* for '.*'.*; do train"):
        assert_sbc(result)
    hint = {"sd × 0.8": "too narrow", "sd × 1.25": "too wide"}.get(defect.name)
    if hint:
        by_name = dict(zip(result.details["names"], result.details["p_holm"], strict=True))
        assert min(by_name[f"x[{i}]"] for i in range(3)) < 0.05


def test_sbc_catches_an_ignored_observation_without_likelihood(known: SimpleNamespace) -> None:
    """An implicit simulator: only the quantities that depend on y see that the posterior is the prior."""
    prior = known.defects["posterior = prior"]()
    result = simulation_based_calibration(prior, known.Implicit(), key=KEY)
    by_name = dict(zip(result.details["names"], result.details["p_raw"], strict=True))
    assert max(by_name["alignment"], by_name["tarp"]) < 1e-6
    assert min(by_name["x[0]"], by_name["x[1]"], by_name["x[2]"], by_name["log q"]) > 1e-3
    assert result.passed is False
    assert simulation_based_calibration(known.GaussianPosterior(), known.Implicit(), key=KEY).passed


@mostly_slow("name", ["sd × 0.8", "sd × 1.25", "mean + 0.3 sd", "sign of the mean flipped", "correlations dropped"])
def test_coverage_catches_planted_defects(known: SimpleNamespace, name: str) -> None:
    result = coverage(known.defects[name](), known.Gaussian(), key=KEY, n_samples=199)
    assert result.passed is False and result.p_value < 1e-3
    with pytest.raises(AssertionError, match=r"coverage: expected .*, got .* sets of .* covered .*; do (widen|narrow) the posterior"):
        assert_coverage(result)
    if name == "sd × 0.8":
        assert "overconfident" in result.details["do"]
    if name == "sd × 1.25":
        assert "underconfident" in result.details["do"]


@pytest.mark.slow
def test_coverage_of_the_exact_posterior(known: SimpleNamespace) -> None:
    result = coverage(known.GaussianPosterior(), known.Gaussian(), key=KEY, n_samples=199)
    assert_coverage(result)
    assert result.details["names"] == ["central x[0]", "central x[1]", "central x[2]", "hpd"]
    for curve in result.details["sets"].values():
        np.testing.assert_allclose(curve["nominal"], np.arange(0.1, 0.96, 0.05), atol=1e-9)
        assert (np.abs(curve["empirical"] - curve["nominal"]) < 0.05).all()
        assert (curve["pointwise"]["lower"] < curve["empirical"]).all() and (curve["empirical"] < curve["pointwise"]["upper"]).all()
        for band in (curve["band"], curve["band_familywise"]):
            assert (band["lower"] <= curve["nominal"]).all() and (curve["nominal"] <= band["upper"]).all()
    json.dumps(to_json(result), allow_nan=False)


@pytest.mark.parametrize("n_samples", [9, 10, 37, 99])
def test_coverage_is_exact_for_any_number_of_draws(n_samples: int) -> None:
    """Every rank once: each set must cover exactly its nominal share."""
    every = np.tile(np.arange(n_samples + 1), (2, 1)).T
    every = np.tile(every, (20, 1))
    n, nothing = len(every), np.zeros((20 * (n_samples + 1), 1))
    ranked = RankPass(("x[0]", "log q"), every, n_samples, np.zeros(n, bool), np.arange(1), nothing, nothing, {})
    for curve in coverage_from_ranks(ranked, levels=(0.3, 0.5, 0.9)).details["sets"].values():
        np.testing.assert_allclose(curve["empirical"], curve["nominal"], rtol=1e-12)


@mostly_slow(("n_runs", "batch_size"), [(38, 7), (60, 7), (35, 1)])
def test_results_do_not_depend_on_chunks_or_on_the_number_of_runs(known: SimpleNamespace, x64: None, n_runs: int, batch_size: int) -> None:
    model, simulator = known.GaussianPosterior(), known.Gaussian()
    whole = rank_pass(model, simulator, key=KEY, n_runs=60, n_samples=19)
    part = rank_pass(model, simulator, key=KEY, n_runs=n_runs, n_samples=19, batch_size=batch_size)
    np.testing.assert_array_equal(part.ranks, whole.ranks[:n_runs])
    assert len(np.unique(whole.ranks, axis=0)) == 60  # no two runs share their randomness


def test_as_many_runs_go_together_as_the_model_has_room_for(known: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []

    def watched(function, rows, most):
        blocks.append(most)
        return map_blocks(function, rows, most)

    monkeypatch.setattr(sys.modules[rank_pass.__module__], "map_blocks", watched)

    class Wide(known.GaussianPosterior):
        def log_prob(self, x: jax.Array, batch: Batch) -> jax.Array:
            wide = jnp.sin(x[..., :1] + jnp.arange(500.0))
            return super().log_prob(x, batch) + 0 * wide.sum(-1)

    for model in (known.GaussianPosterior(), Wide()):
        rank_pass(model, known.Gaussian(), key=KEY, n_runs=20, n_samples=19)
    narrow, wide = blocks
    assert narrow > 50 and wide == 2**15 // (20 * 500)


def test_a_density_that_cannot_be_batched_is_an_error_and_no_missing_one(known: SimpleNamespace) -> None:
    class Host(known.GaussianPosterior):
        def log_prob(self, x: jax.Array, batch: Batch) -> jax.Array:
            return jax.pure_callback(lambda x: np.float32(0), jax.ShapeDtypeStruct((), np.float32), x)

    with pytest.raises(NotImplementedError, match="vmap"):
        rank_pass(Host(), known.Gaussian(), key=KEY, n_runs=20, n_samples=19)


def test_ranks_match_a_plain_loop(known: SimpleNamespace) -> None:
    """The same keys, one run at a time, counted by numpy."""
    model, simulator = known.GaussianPosterior(), known.Gaussian()
    ranked = rank_pass(model, simulator, key=KEY, n_runs=20, n_samples=19)
    runs_key = jax.random.split(KEY)[1]
    for run in range(3):
        simulate, draw, _ = jax.random.split(jax.random.fold_in(runs_key, run), 3)
        element = simulator.sample(simulate)
        seen = element._replace(target=None)
        draws = np.asarray(model.sample(seen, draw, 19))
        row = dict(zip(ranked.names, ranked.ranks[run], strict=True))
        for i in range(3):
            assert row[f"x[{i}]"] == (draws[:, i] < float(element.target[i])).sum()
        log_q = np.asarray(model.log_prob(draws, seen))
        assert row["log q"] == (log_q < float(model.log_prob(element.target, seen))).sum()
        np.testing.assert_allclose(ranked.zscore[run], (draws.mean(0) - element.target) / draws.std(0, ddof=1), rtol=1e-4)


@pytest.mark.slow
def test_zscore_and_contraction_have_their_closed_form(known: SimpleNamespace) -> None:
    summary = simulation_based_calibration(known.GaussianPosterior(), known.Gaussian(), key=KEY, n_samples=499).details
    contraction = np.median(summary["contraction"], axis=0)
    np.testing.assert_allclose(contraction, 1 - np.diag(known.covariance), atol=0.06)
    assert abs(summary["zscore_summary"]["median"]) < 0.1
    assert summary["zscore_summary"]["p95"] == pytest.approx(1.645, abs=0.15)


@pytest.mark.parametrize("gate", [simulation_based_calibration, coverage])
def test_non_finite_draws_fail_and_are_never_dropped(known: SimpleNamespace, gate: object) -> None:
    result = gate(known.SamplesOnly(limit=3.5), known.Gaussian(), key=KEY, n_runs=1000, n_samples=19)  # about 0.5 % of the runs
    assert result.passed is False and result.p_value is None
    assert 0 < result.details["n_failed"] < 50
    with pytest.raises(AssertionError, match="of 1000 runs with non-finite"):
        (assert_sbc if gate is simulation_based_calibration else assert_coverage)(result)
    assert to_json(result)["statistic"] is None


@pytest.mark.parametrize("name", ["SamplesOnly", "WithoutDensity"])
def test_a_model_without_density_is_judged_on_the_rest_and_says_so(known: SimpleNamespace, name: str) -> None:
    result = simulation_based_calibration(getattr(known, name)(), known.Gaussian(), key=KEY, n_runs=500)
    assert result.passed and "log q" not in result.details["names"]
    assert "density" in result.details["skipped_quantities"]["log q"] or "log_prob" in result.details["skipped_quantities"]["log q"]


@pytest.mark.slow
def test_custom_quantities_replace_the_default_ones(known: SimpleNamespace) -> None:
    total = {"sum": lambda x, element: x.sum()}
    dropped = known.defects["correlations dropped"]()
    result = simulation_based_calibration(dropped, known.Gaussian(), key=KEY, n_runs=500, quantities=total)
    assert result.details["names"] == ["sum"]
    marginal = {"first": lambda x, element: x[0]}
    assert simulation_based_calibration(dropped, known.Gaussian(), key=KEY, n_runs=500, quantities=marginal).passed


class Field(Simulator):
    """A smooth 6 × 8 field with half of its values observed, the other half NaN, in groups that vary."""

    kind = "field"

    def sample(self, key: jax.Array) -> Batch:
        a, b, c = jax.random.split(key, 3)
        x = jax.random.normal(a, (6, 8))
        mask = jax.random.bernoulli(b, 0.5, (6, 8)).astype(x.dtype)
        y = jnp.where(mask > 0, x + jax.random.normal(c, x.shape), jnp.nan)
        return Batch(input=y, mask=mask, target=x)


class FieldPosterior:
    """Its exact posterior, independent in every point."""

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def moments(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        seen = batch.mask > 0
        return jnp.where(seen, 0.5 * batch.input, 0.0), self.scale * jnp.where(seen, jnp.sqrt(0.5), 1.0)

    def sample(self, batch: Batch, key: jax.Array, n: int) -> jax.Array:
        mean, sd = self.moments(batch)
        return mean[..., None, :, :] + sd[..., None, :, :] * jax.random.normal(key, (*mean.shape[:-2], n, 6, 8))

    def log_prob(self, x: jax.Array, batch: Batch) -> jax.Array:
        mean, sd = self.moments(batch)
        return (-0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd)).sum((-2, -1))


@pytest.mark.slow
def test_fields_with_gaps_use_projections_and_a_few_marginals() -> None:
    result = simulation_based_calibration(FieldPosterior(), Field(), key=KEY, n_runs=500)
    names = result.details["names"]
    assert sum(n.startswith("direction[") for n in names) == 8 and sum(n.startswith("x[") for n in names) == 8
    assert {"x[0]", "x[47]", "product", "log q", "alignment", "tarp"} <= set(names)
    assert_sbc(result)
    assert simulation_based_calibration(FieldPosterior(0.8), Field(), key=KEY, n_runs=500).passed is False


def test_wrong_inputs_are_named(known: SimpleNamespace) -> None:
    model, simulator = known.GaussianPosterior(), known.Gaussian()
    with pytest.raises(ConfigError, match="expected n_runs >= 20, got 5"):
        rank_pass(model, simulator, key=KEY, n_runs=5)
    with pytest.raises(ConfigError, match="expected n_samples >= 9, got 3"):
        rank_pass(model, simulator, key=KEY, n_samples=3)
    with pytest.raises(ConfigError, match="expected draws of shape"):
        rank_pass(SimpleNamespace(sample=lambda batch, key, n: jnp.zeros((3, n))), simulator, key=KEY, n_runs=20)
    with pytest.raises(ConfigError, match="expected levels in"):
        coverage(model, simulator, key=KEY, n_runs=20, n_samples=9, levels=(0.5, 1.0))
    with pytest.raises(ConfigError, match="expected 0 < level < 1"):
        simulation_based_calibration(model, simulator, key=KEY, n_runs=20, level=5.0)
