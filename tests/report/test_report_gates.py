"""The report draws what the gates of this library really return."""

from __future__ import annotations

import jax
import numpy as np

from vardax_flax.report import check, write_report
from vardax_flax.report.figures import draw_all
from vardax_flax.validation import RankPass, adjoint_calibration, coverage_from_ranks, posterior_agreement, sbc_from_ranks, skipped, to_json
from vardax_flax.validation.ensemble import ensemble_scores
from vardax_flax.validation.result import word

RUN = {"preset": "p", "config": {}, "command": "c"}


def _ranked(rng: np.random.Generator, n_failed: int = 0) -> RankPass:
    ranks = rng.integers(0, 100, (600, 3))
    ranks[:, 1] = np.floor(100 * rng.beta(0.5, 0.5, 600))
    failed = np.arange(600) < n_failed
    ranks[failed] = -1
    scores = rng.normal(size=(600, 2))
    names = ("x[0]", "x[1]", "log q")
    return RankPass(names, ranks, 99, failed, np.arange(2), scores, np.full((600, 2), 0.75), {"log prior": "no density"})


def test_every_gate_is_drawn_and_none_is_left_out() -> None:
    rng = np.random.default_rng(0)
    ranked = _ranked(rng)
    draws, truth = rng.normal(size=(64, 20, 2)), rng.normal(size=(64, 2))
    gates = [
        sbc_from_ranks(ranked),
        coverage_from_ranks(ranked),
        posterior_agreement(rng.normal(size=(64, 200, 2)), rng.normal(size=(64, 200, 2))),
        ensemble_scores(draws.astype(np.float32), truth.astype(np.float32), key=jax.random.key(0)),
        skipped("psis", "no density"),
    ]
    training = {"steps": 2, "loss": [[0, 2.0], [1, 1.0]]}
    for version in (gates, [to_json(gate) for gate in gates]):
        results = check({"title": "t", "run": RUN, "gates": version, "training": training})
        drawings, left_out = draw_all(dict(results))
        assert left_out == []
        titles = [drawing.title.split(": ")[1] for drawing in drawings]
        assert titles[:3] == ["rank histograms", "ECDF difference", "empirical against nominal"]
        assert titles[3:] == ["means and spreads", "rank histogram", "loss"]
        assert "1 of 3 quantities reject: x[1]." in drawings[0].caption and "75 % of the prior variance" in drawings[0].caption
        assert "Not tested: log prior (no density)." in drawings[0].caption
        assert "(central x[1])" in drawings[2].caption
        assert "✗ x[1]" in drawings[0].svg and "✗ x[1]" in drawings[1].svg and "✗ x[1]" in drawings[2].svg
        assert results["gates"][4]["skipped"] == "no density" and results["verdict"]["passed"] is False


def test_a_gate_that_cannot_tell_says_so(tmp_path) -> None:
    y = jax.random.normal(jax.random.key(0), (2, 5))
    gate = adjoint_calibration(lambda y: 1.04 * y, lambda y: y, y, key=jax.random.key(1), n_probes=2)
    assert word(gate) == "inconclusive"
    write_report({"title": "t", "run": RUN, "gates": [gate._asdict()]}, tmp_path)
    for page in ("report.html", "report.md"):
        assert "inconclusive" in (tmp_path / page).read_text().replace(gate.summary, "")


def test_failed_runs_are_told() -> None:
    gate = sbc_from_ranks(_ranked(np.random.default_rng(1), n_failed=7))
    drawings, left_out = draw_all(dict(check({"title": "t", "run": RUN, "gates": [gate]})))
    assert "7 runs with non-finite draws are not drawn and fail the gate." in drawings[0].caption
    assert "Ranks over 593 simulated cases" in drawings[0].caption
    assert any("ECDF difference" in line and "has no `z`" in line for line in left_out)
