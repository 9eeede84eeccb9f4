"""What every gate returns: a verdict, the number it rests on, and the arrays a report draws."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np


class GateResult(NamedTuple):
    """Outcome of one gate.

    Args:
        name: of the gate.
        passed: the verdict; None for a metric without bound and for a gate that was skipped or stayed inconclusive.
        statistic: the number the verdict rests on.
        bound: what `statistic` was compared with.
        p_value: adjusted for every hypothesis the gate tested.
        summary: one line for people.
        details: arrays and plain values for the figures; `worst` and `do` explain a failure.

    Example:
        >>> result = simulation_based_calibration(model, simulator, key=jax.random.key(0))
        >>> result.passed
        True
    """

    name: str
    passed: bool | None
    statistic: float
    bound: float | None
    p_value: float | None
    summary: str
    details: dict[str, Any]


def skipped(name: str, reason: str) -> GateResult:
    """A gate that could not run, with the reason that the report prints.

    Example:
        >>> skipped("sbc", "the simulator needs a licence").passed is None
        True
    """
    return GateResult(name, None, math.nan, None, None, f"skipped: {reason}", {"skipped": reason})


def word(result: GateResult) -> str:
    """The verdict in one word: passed, FAILED, skipped, inconclusive, or metric where there is none to give.

    Example:
        >>> word(skipped("sbc", "the simulator needs a licence"))
        'skipped'
    """
    none = next((name for name in ("skipped", "inconclusive") if result.details.get(name)), "metric")
    return {True: "passed", False: "FAILED", None: none}[result.passed]


def to_json(result: GateResult) -> dict[str, Any]:
    """The result as JSON values: arrays become lists, non-finite numbers null.

    Raises:
        TypeError: a detail that is neither an array nor a plain value.

    Example:
        >>> to_json(skipped("sbc", "no density"))["statistic"] is None
        True
    """
    return {field: _plain(value) for field, value in result._asdict().items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise TypeError(f"expected arrays and plain values in a gate result, got {type(value).__name__}; do convert it with numpy")


def assert_passed(result: GateResult) -> None:
    """Raise unless the gate passed.

    Raises:
        AssertionError: the gate failed, or gave no verdict; names the worst component, its value, the bound and what to do.

    Example:
        >>> assert_passed(coverage(model, simulator, key=key))
    """
    if result.passed is None:
        do = result.details.get("do", "supply what it lacks")
        raise AssertionError(f"{result.name}: expected a verdict, got none ({result.summary}); do {do}")
    if not result.passed:
        bound = "a bound that holds" if result.bound is None else f"a bound of {result.bound:.3g} that holds"
        expected = result.details.get("expected", bound)
        worst, do = result.details.get("worst", result.summary), result.details.get("do", "see the details")
        raise AssertionError(f"{result.name}: expected {expected}, got {worst}; do {do}")
