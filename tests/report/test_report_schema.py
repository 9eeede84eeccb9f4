"""The schema: what is accepted, what is refused with its place, and who settles the verdict."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.report import SCHEMA_VERSION, ReportError, check, render, write_report

MINIMAL: dict[str, Any] = {"title": "t", "run": {"preset": "p", "config": {}, "command": "c"}, "gates": []}
PASSED = {"name": "a", "passed": True, "summary": "s"}
FAILED = {"name": "b", "passed": False, "summary": "s"}
OPEN = {"name": "c", "passed": None, "summary": "s"}
SKIPPED = {"name": "d", "passed": None, "summary": "s", "skipped": "no density"}


def test_checked_results_are_json_and_stay_the_same(results: dict[str, Any]) -> None:
    checked = check(results)
    again = json.loads(json.dumps(checked, allow_nan=False))
    assert again == checked
    assert check(again) == checked
    assert checked["schema_version"] == SCHEMA_VERSION
    np.testing.assert_array_equal(checked["gates"][0]["details"]["ranks"], results["gates"][0]["details"]["ranks"])
    assert checked["windows"][0]["posterior_mean"] == results["windows"][0]["posterior_mean"].tolist()


def test_the_input_is_left_alone(results: dict[str, Any]) -> None:
    before = copy.deepcopy(results)
    check(results)
    np.testing.assert_equal(results, before)


def test_jax_arrays_and_numpy_scalars_become_numbers() -> None:
    gate = PASSED | {"statistic": jnp.float32(0.5), "p_value": np.float64(0.25), "details": {"z": jnp.ones((2, 2)), "n": np.int64(3)}}
    checked = check(MINIMAL | {"gates": [gate | {"passed": np.bool_(True)}]})["gates"][0]
    assert (checked["passed"], checked["statistic"], checked["p_value"]) == (True, 0.5, 0.25)
    assert checked["details"] == {"z": [[1.0, 1.0], [1.0, 1.0]], "n": 3} and isinstance(checked["details"]["n"], int)


def test_non_finite_values_become_null_and_are_counted() -> None:
    gate = PASSED | {"statistic": math.nan, "details": {"z": np.array([[1.0, np.inf], [np.nan, 2.0]])}}
    checked = check(MINIMAL | {"gates": [gate]})
    assert checked["gates"][0]["statistic"] is None
    assert checked["gates"][0]["details"]["z"] == [[1.0, None], [None, 2.0]]
    assert checked["notes"] == [
        "1 non-finite value in gates[0].statistic written as null.",
        "2 non-finite values in gates[0].details.z written as null.",
    ]


def test_unobserved_places_are_no_defect(results: dict[str, Any]) -> None:
    notes = check(results)["notes"]
    assert not any(".obs" in note for note in notes)
    assert any("gates[2].details.z" in note for note in notes)


def test_scatters_are_thinned_and_say_so(results: dict[str, Any]) -> None:
    checked = check(results)
    assert len(checked["windows"][1]["draws"]) == 500
    assert checked["windows"][1]["draws"][-1] == results["windows"][1]["draws"][-1].tolist()
    assert "Two moons: 4000 draws thinned to 500." in checked["notes"]


@pytest.mark.parametrize(
    ("gates", "claim", "passed", "text"),
    [
        ([PASSED], None, True, "The one gate that was decided passed: no evidence against this posterior was found."),
        ([PASSED, PASSED, OPEN, SKIPPED], None, True, "(1 skipped, 1 without a verdict)"),
        ([PASSED, FAILED], None, False, "1 of 2 gates failed"),
        ([PASSED, FAILED], {"passed": True, "text": "all is well"}, False, "1 of 2 gates failed"),
        ([PASSED], {"passed": True, "text": "all is well"}, True, "all is well"),
        ([PASSED], {"passed": False, "text": "the oracle is missing"}, False, "the oracle is missing"),
        ([OPEN, SKIPPED], {"passed": True, "text": "all is well"}, False, "No gate was decided"),
        ([], None, False, "No gate was decided"),
    ],
)
def test_the_gates_settle_the_verdict(gates: list[Any], claim: Any, passed: bool, text: str) -> None:
    verdict = check(MINIMAL | {"gates": gates, **({} if claim is None else {"verdict": claim})})["verdict"]
    assert verdict["passed"] is passed
    assert text in verdict["text"] and "all is well" not in verdict["text"].replace(text, "")


def test_the_reason_of_a_skipped_gate_is_taken_from_its_details() -> None:
    gate = {"name": "sbc", "passed": None, "summary": "skipped", "details": {"skipped": "no simulator"}}
    assert check(MINIMAL | {"gates": [gate]})["gates"][0]["skipped"] == "no simulator"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, r"expected schema_version 1, got 2; do write the report again"),
        ({"titel": "t"}, r"expected a key of Results at results, got 'titel'; .*did you mean 'title'\?"),
        ({"title": 3}, r"expected a value of type str at results.title, got 3; do correct it"),
        ({"gates": [{"name": "a", "summary": "s"}]}, r"expected `passed` in results.gates\[0\]"),
        ({"gates": [PASSED | {"passed": 1}]}, r"expected a value of type bool at results.gates\[0\].passed, got 1"),
        ({"gates": [PASSED | {"p_value": True}]}, r"expected a number at results.gates\[0\].p_value, got True"),
        ({"gates": [PASSED | {"skipped": "why"}]}, r"expected gates\[0\].passed null where skipped, got True"),
        ({"windows": [{"title": "w", "kind": "map"}]}, r"expected `kind` 'trajectory' or 'scatter' at results.windows\[0\], got 'map'"),
        ({"windows": [{"title": "w", "kind": "scatter"}]}, r"expected `names` in results.windows\[0\]"),
        ({"training": {"steps": 1, "loss": 2.0}}, r"expected a list at results.training.loss, got 2.0"),
        ({"run": {"preset": "p", "command": "c", "config": {"f": len}}}, r"expected a JSON value or an array at run.config.f, got builtin"),
        ({"run": {"preset": "p", "command": "c", "config": {1: 2}}}, r"expected text as keys of run.config, got 1"),
        ({"versions": {"jax": np.array(["a"])}}, r"expected real numbers in versions.jax, got dtype"),
    ],
)
def test_what_is_no_report_is_refused_with_its_place(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=message) as error:
        write_report(MINIMAL | change, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "got no file; do run the evaluation first"),
        ('{"title": "t"', "expected JSON in"),
        ('{"title": NaN}', "expected JSON numbers in .*, got NaN"),
        ("[]", "expected `results` as an object"),
        (json.dumps(MINIMAL | {"schema_version": 99}), "expected schema_version 1, got 99"),
    ],
)
def test_a_file_that_is_no_report_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ReportError, match=message):
        render(path)
    assert not (tmp_path / "report.html").exists()
