"""What a report is made of: one versioned JSON object, declared here once as `TypedDict`s and checked against them.

    results = {"title": …, "run": Run, "versions": {package: version}, "timings": [Timing], "gates": [Gate],
               "training": Training, "tables": [Table], "windows": [Trajectory | Scatter]}

`title`, `run` and `gates` are required. `schema_version`, `verdict` and `notes` are filled in by `check`, which also turns arrays into
lists and non-finite numbers into null (and says so in `notes`), and settles the verdict: it passes only if at least one gate passed and
none failed.

Keys of `Gate.details` that figures read, where N is the number of runs, L of draws per run, m of test quantities, K of levels:

    ranks (N, m) in 0 … L or -1 for a failed run, names [m], n_samples L, p_holm [m], level: rank histograms
    z [K], band {lower [K], upper [K]}, band_familywise likewise: ECDF of the ranks at z, as fractions
    sets {name: {nominal [K], empirical [K], band, band_familywise}}, p_holm, level: coverage; central intervals are named "central …"
    z (events, D), spread_ratio (events, D), names [D], tolerance_sigma, spread_ratio_bound: agreement, in the oracle's standard deviations
    rank_histogram [members + 1]: ensemble
    n_failed, contraction_summary, skipped_quantities: told in captions; worst, do: told with a failing gate
    skipped: the reason why the gate did not run; inconclusive: that it ran and cannot tell
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from vardax_flax.core.config import closest

SCHEMA_VERSION = 1
MAX_SCATTER_POINTS = 500

Matrix = list[list[float | None]]


class ReportError(ValueError):
    """Results that are no report: one line, *expected …, got …, do …*."""


class Verdict(TypedDict):
    """The first line of the report: did the posterior pass, and one sentence for a decision maker."""

    passed: bool
    text: str


class Run(TypedDict):
    """Which run is judged; `config` is the nested configuration, `parameters` the number of trainable parameters."""

    preset: str
    config: dict[str, Any]
    command: str
    seed: NotRequired[int | None]
    parameters: NotRequired[int | None]


class Timing(TypedDict):
    """Wall time of one part of the run, in seconds."""

    what: str
    seconds: float | None
    note: NotRequired[str | None]


class Gate(TypedDict):
    """One gate: `passed` is null for a metric without bound, an inconclusive test, or a gate skipped for the reason in `skipped`."""

    name: str
    passed: bool | None
    statistic: NotRequired[float | None]
    bound: NotRequired[float | None]
    p_value: NotRequired[float | None]
    summary: str
    details: NotRequired[dict[str, Any]]
    skipped: NotRequired[str | None]


class Training(TypedDict):
    """The training record: `loss` and `validation` are lists of [step, value]."""

    steps: int
    loss: Matrix
    validation: NotRequired[Matrix]
    best_step: NotRequired[int | None]
    steps_per_second: NotRequired[float | None]


class Table(TypedDict):
    """A table of strings and numbers, row by row."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: NotRequired[str | None]


class Trajectory(TypedDict):
    """States over time, each `[T][D]`; `obs` is `[T_obs][D]` with null where nothing was observed; low and high bound 90 % bands."""

    title: str
    kind: Literal["trajectory"]
    time: list[float]
    names: list[str]
    posterior_mean: Matrix
    posterior_low: Matrix
    posterior_high: Matrix
    truth: NotRequired[Matrix | None]
    prior_low: NotRequired[Matrix | None]
    prior_high: NotRequired[Matrix | None]
    obs_time: NotRequired[list[float] | None]
    obs: NotRequired[Matrix | None]
    time_label: NotRequired[str]


class Scatter(TypedDict):
    """Draws of two parameters, `[n][2]`, beside reference draws; thinned to 500 points."""

    title: str
    kind: Literal["scatter"]
    names: list[str]
    draws: Matrix
    reference: NotRequired[Matrix | None]
    truth: NotRequired[list[float] | None]


class Results(TypedDict):
    """Everything a report says; see the module's first lines."""

    schema_version: int
    title: str
    verdict: Verdict
    run: Run
    gates: list[Gate]
    versions: NotRequired[dict[str, str]]
    timings: NotRequired[list[Timing]]
    training: NotRequired[Training | None]
    tables: NotRequired[list[Table]]
    windows: NotRequired[list[Trajectory | Scatter]]
    notes: NotRequired[list[str]]


def check(results: Mapping[str, Any]) -> Results:
    """Plain JSON values of `results`, valid against the schema, with the verdict settled by the gates; `check(check(r)) == check(r)`.

    Args:
        results: the dictionary described at the top of this module; arrays may be NumPy or JAX arrays.

    Raises:
        ReportError: another schema version, a missing or unknown key, or a value of the wrong type; names its place.

    Example:
        >>> checked = check({"title": "t", "run": {"preset": "p", "config": {}, "command": "c"}, "gates": []})
        >>> checked["verdict"]["passed"]
        False
    """
    non_finite: dict[str, int] = {}
    plain = _plain(results, "results", non_finite)
    if not isinstance(plain, dict):
        raise ReportError(f"expected `results` as an object, got {_show(plain)}; do pass a dictionary")
    version = plain.setdefault("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ReportError(f"expected schema_version {SCHEMA_VERSION}, got {_show(version)}; do write the report again with this version")
    for gate in plain["gates"] if isinstance(plain.get("gates"), list) else []:
        if isinstance(gate, dict) and isinstance(gate.get("details"), dict) and "skipped" in gate["details"]:
            gate.setdefault("skipped", gate["details"]["skipped"])
    claim = plain.get("verdict")
    plain["verdict"] = {"passed": False, "text": ""} if claim is None else claim
    _conform(plain, Results, "results")
    for index, gate in enumerate(plain["gates"]):
        if gate.get("skipped") and gate["passed"] is not None:
            raise ReportError(f"expected gates[{index}].passed null where skipped, got {gate['passed']}; do drop one of the two")
    counted = {place: count for place, count in non_finite.items() if not place.endswith("].obs")}  # there, null means unobserved
    notes = [f"{count} non-finite value{'s' * (count > 1)} in {place} written as null." for place, count in counted.items()]
    notes += [note for window in plain.get("windows", []) for note in _thin(window)]
    if notes:
        plain["notes"] = plain.get("notes", []) + notes
    plain["verdict"] = _verdict(plain["gates"], claim)
    return typing.cast(Results, plain)


def _verdict(gates: list[dict[str, Any]], claim: dict[str, Any] | None) -> dict[str, Any]:
    """The gates decide: a claim is kept only where it agrees with them, or is the more cautious one."""
    failed = sum(gate["passed"] is False for gate in gates)
    succeeded = sum(gate["passed"] is True for gate in gates)
    passed = failed == 0 and succeeded > 0
    if claim is not None and claim["text"] and claim["passed"] <= passed:
        return claim
    skipped = sum(bool(gate.get("skipped")) for gate in gates)
    open_ = len(gates) - failed - succeeded - skipped
    others = [f"{skipped} skipped"] * (skipped > 0) + [f"{open_} without a verdict"] * (open_ > 0)
    rest = f" ({', '.join(others)})" if others else ""
    if passed:
        which = "The one gate that was decided" if succeeded == 1 else f"All {succeeded} gates that were decided"
        return {"passed": True, "text": f"{which} passed: no evidence against this posterior was found{rest}."}
    if failed:
        which = f"{failed} of {failed + succeeded} gate{'s' * (failed + succeeded > 1)} failed"
        return {"passed": False, "text": f"{which}: do not rely on this posterior before the failures below are resolved{rest}."}
    return {"passed": False, "text": f"No gate was decided, so nothing is known about this posterior{rest}."}


def _thin(window: dict[str, Any]) -> list[str]:
    notes = []
    for name in ("draws", "reference") if window["kind"] == "scatter" else ():
        points = window.get(name)
        if points and len(points) > MAX_SCATTER_POINTS:
            window[name] = [points[i] for i in np.linspace(0, len(points) - 1, MAX_SCATTER_POINTS).round().astype(int)]
            notes.append(f"{window['title']}: {len(points)} {name} thinned to {MAX_SCATTER_POINTS}.")
    return notes


def _plain(value: Any, place: str, non_finite: dict[str, int]) -> Any:
    """JSON values: arrays → lists, non-finite numbers → None (counted by place)."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            raise ReportError(f"expected text as keys of {place}, got {_show(bad[0])}; do convert it with str()")
        return {key: _plain(item, f"{place}.{key}" if place != "results" else key, non_finite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if all(type(item) is int or type(item) is float for item in value):  # the bulk of a report: no call per number
            return _numbers(value, place, non_finite)
        # numbers keep the place of their array, so that a note names the array and not a thousand elements
        nested = [f"{place}[{i}]" if isinstance(item, Mapping) or hasattr(item, "_asdict") else place for i, item in enumerate(value)]
        return [_plain(item, where, non_finite) for item, where in zip(value, nested, strict=True)]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _numbers([float(value)], place, non_finite)[0]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return _plain(array.tolist(), place, non_finite)
        raise ReportError(f"expected real numbers in {place}, got dtype {array.dtype}; do convert it to a real array or to text")
    raise ReportError(f"expected a JSON value or an array at {place}, got {type(value).__name__}; do convert it")


def _numbers(values: Sequence[int | float], place: str, non_finite: dict[str, int]) -> list[int | float | None]:
    out = [value if math.isfinite(value) else None for value in values]
    count = out.count(None)
    if count:
        non_finite[place] = non_finite.get(place, 0) + count
    return out


def _conform(value: Any, kind: Any, place: str) -> None:
    """Raise `ReportError` unless `value` has the declared type; `place` is its path for the message."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if typing.is_typeddict(kind):
        _conform_object(value, kind, place)
    elif kind is Any:
        pass
    elif origin in (typing.Union, types.UnionType):
        _conform_union(value, members, place)
    elif origin is Literal:
        _expect(value in members, " or ".join(map(repr, members)), value, place)
    elif origin is list:
        _expect(isinstance(value, list), "a list", value, place)
        if members[0] in (float, float | None) and all(type(item) is int or type(item) is float for item in value):
            return
        for index, item in enumerate(value):
            _conform(item, members[0], f"{place}[{index}]")
    elif origin is dict:
        _expect(isinstance(value, dict), "an object", value, place)
        for key, item in value.items():
            _conform(item, members[1], f"{place}.{key}")
    elif kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, place)
    elif kind is type(None):
        _expect(value is None, "null", value, place)
    else:
        _expect(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), f"a value of type {kind.__name__}", value, place)


def _conform_object(value: Any, kind: Any, place: str) -> None:
    _expect(isinstance(value, dict), f"an object of {kind.__name__}", value, place)
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in value:
        if key not in hints:
            options = f"{', '.join(hints)}{closest(key, hints)}"
            raise ReportError(f"expected a key of {kind.__name__} at {place}, got {key!r}; do use one of {options}")
    for key, hint in hints.items():
        optional = typing.get_origin(hint) is NotRequired  # `__required_keys__` cannot see it in postponed annotations
        if key in value:
            _conform(value[key], typing.get_args(hint)[0] if optional else hint, f"{place}.{key}")
        elif not optional:
            raise ReportError(f"expected `{key}` in {place}, got {', '.join(value) or 'no key'}; do add it")


def _conform_union(value: Any, members: tuple[Any, ...], place: str) -> None:
    tagged = [member for member in members if typing.is_typeddict(member) and "kind" in member.__annotations__]
    objects = {typing.get_args(typing.get_type_hints(member)["kind"])[0]: member for member in tagged}
    if objects:
        kind = value.get("kind") if isinstance(value, dict) else None
        _expect(kind in objects, f"`kind` {' or '.join(map(repr, objects))}", kind, place)
        return _conform(value, objects[kind], place)
    if value is None and type(None) in members:
        return None
    inner = [member for member in members if member is not type(None)]
    return _conform(value, inner[0], place)


def _expect(condition: bool, expected: str, got: Any, place: str) -> None:
    if not condition:
        raise ReportError(f"expected {expected} at {place}, got {_show(got)}; do correct it")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
