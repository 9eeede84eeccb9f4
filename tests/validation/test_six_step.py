"""The six steps: what each change sends back, on results made by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from vardax_flax.core.config import ConfigError
from vardax_flax.simulators import Lorenz63
from vardax_flax.validation import GateResult, skipped
from vardax_flax.validation.six_step import REVALIDATE, SixStepReport, Step, fingerprint

PARTS = {name: name for name in REVALIDATE}


def gate(name, passed):
    return GateResult(name, passed, 0.0, 1.0, None, name, {} if passed else {"do": f"repair {name}"})


@pytest.fixture
def validated():
    report = SixStepReport()
    for number in range(1, 6):
        report = report.record(number, [gate(f"gate {number}", True)], PARTS)
    return report


@pytest.mark.parametrize(
    ("part", "steps"),
    [("physics", [2, 3, 4, 5]), ("oracle", [4]), ("emulator", [4, 5]), ("head", [5]), ("observation", [2, 4, 5])],
)
def test_a_new_part_makes_its_steps_stale(validated, part, steps):
    assert validated.stale(PARTS) == {}
    changed = PARTS | {part: "new"}
    assert validated.stale(changed) == {number: (part,) for number in steps}
    again = [row[2] for row in validated.table(changed)["rows"]]
    assert [i + 1 for i, text in enumerate(again) if text == f"stale: new {part}"] == steps
    for number in steps:
        validated = validated.record(number, [gate("again", True)], changed)
    assert validated.stale(changed) == {}


def test_two_changes_are_both_named(validated):
    assert validated.stale(PARTS | {"head": "new", "physics": "new"})[5] == ("physics", "head")


def test_verdicts():
    report = SixStepReport().record(1, [gate("a", True), skipped("b", "why")], PARTS)
    report = report.record(5, [gate("c", True), gate("d", False)], PARTS).skip(3, "no emulator", PARTS)
    report = report.record(2, [skipped("e", "why")], PARTS)
    assert [report.step(n).verdict for n in range(1, 7)] == ["passed", "skipped", "skipped", "not run", "failed", "failed"]
    assert report.step(5).summary == "d" and report.step(6).do == ("d: repair d",)
    assert 3 not in report.stale(PARTS | {"physics": "new"})  # nothing was validated there


def test_a_report_survives_the_disk(validated, tmp_path):
    report = validated.record(5, [gate("x", False)], PARTS)
    report.save(tmp_path / "six.json")
    assert SixStepReport.load(tmp_path / "six.json") == report
    assert SixStepReport.load(tmp_path / "none.json") == SixStepReport()
    (tmp_path / "bad.json").write_text('{"1": 3}')
    with pytest.raises(ConfigError, match="six steps as JSON"):
        SixStepReport.load(tmp_path / "bad.json")


def test_bad_records_are_refused(validated):
    with pytest.raises(ConfigError, match="a step from 1 to 5"):
        validated.record(6, [], PARTS)
    with pytest.raises(ConfigError, match="parts of physics"):
        validated.record(1, [], {"weather": "x"})
    assert SixStepReport().step(6) == Step()


def test_fingerprints_see_values_code_and_weights():
    weights = {"a": jnp.zeros(3), "b": jax.random.key(0)}
    same = fingerprint(Lorenz63(), weights)
    assert same == fingerprint(Lorenz63(), {"a": jnp.zeros(3), "b": jax.random.key(0)}) and len(same) == 12
    others = [
        fingerprint(dataclasses.replace(Lorenz63(), rho=29.0), weights),
        fingerprint(Lorenz63(), weights | {"a": jnp.zeros(3).at[0].set(1e-6)}),
        fingerprint(Lorenz63(), weights | {"b": jax.random.key(1)}),
        fingerprint(Lorenz63(), {"a": jnp.zeros(3), "c": jax.random.key(0)}),
        fingerprint(weights),
        fingerprint(test_verdicts),
        fingerprint("a", "b"),
        fingerprint("ab"),
    ]
    assert len({same, *others}) == 9
