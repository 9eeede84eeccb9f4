"""Six steps from physics to a fast posterior that may be trusted, and which of them a change makes stale.

    1 physics forward → 2 classical oracle → 3 emulator → 4 oracle with the emulator → 5 amortized head → 6 improve

Each step is validated against parts, which are known by fingerprints. A part that changes sends some steps back:

    new physics                → 2, 3, 4, 5
    new oracle                 → 4
    better emulator            → 4, 5
    better head                → 5
    new observation operator   → 2, 4, 5
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.config import ConfigError, require, to_dict
from vardax_flax.validation.result import GateResult

STEPS = {
    1: "physics forward",
    2: "classical oracle",
    3: "emulator",
    4: "oracle with the emulator",
    5: "amortized head",
    6: "improve",
}
REVALIDATE: dict[str, tuple[int, ...]] = {
    "physics": (2, 3, 4, 5),
    "oracle": (4,),
    "emulator": (4, 5),
    "head": (5,),
    "observation": (2, 4, 5),
}
UNKNOWN = ""  # fingerprint of a part that is not there


@dataclasses.dataclass(frozen=True)
class Step:
    """What is known about one step.

    Args:
        verdict: "passed", "failed", "skipped" or "not run".
        summary: which gates decided it, or why it was skipped.
        do: what the failed gates say should be done.
        parts: fingerprints it was validated against.
    """

    verdict: str = "not run"
    summary: str = ""
    do: tuple[str, ...] = ()
    parts: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SixStepReport:
    """The state of the six steps; `record` and `skip` return a new one.

    Args:
        steps: by number; a missing one was not run.

    Example:
        >>> report = SixStepReport().record(5, gates, {"physics": fingerprint(simulator), "head": fingerprint(weights)})
        >>> report.stale({"physics": fingerprint(simulator), "head": fingerprint(other_weights)})
        {5: ('head',)}
    """

    steps: dict[int, Step] = dataclasses.field(default_factory=dict)

    def record(self, number: int, results: Sequence[GateResult], parts: Mapping[str, str]) -> SixStepReport:
        """The report with one step validated: failed if a gate failed, passed if one passed and none failed, else skipped.

        Args:
            number: 1 … 5; step 6 follows from the others.
            results: of the gates of the step.
            parts: fingerprint of each part in use, by `REVALIDATE`'s names.

        Raises:
            ConfigError: another number, or an unknown part.
        """
        _check(number, parts)
        decided = [result for result in results if result.passed is not None]
        failed = [result for result in decided if not result.passed]
        verdict = "failed" if failed else "passed" if decided else "skipped"
        names = ", ".join(result.name for result in failed or decided) or "no gate gave a verdict"
        do = tuple(f"{result.name}: {result.details.get('do', 'see its details')}" for result in failed)
        return self._with(number, Step(verdict, names, do, dict(parts)))

    def skip(self, number: int, reason: str, parts: Mapping[str, str]) -> SixStepReport:
        """The report with one step skipped for a reason.

        Raises:
            ConfigError: as `record`.
        """
        _check(number, parts)
        return self._with(number, Step("skipped", reason, (), dict(parts)))

    def step(self, number: int) -> Step:
        """One step; the last is what the failures of the others say should be done."""
        if number != 6:
            return self.steps.get(number, Step())
        do = tuple(line for n in sorted(self.steps) for line in self.steps[n].do)
        if do:
            return Step("failed", "; ".join(do), do)
        known = any(step.verdict == "passed" for step in self.steps.values())
        return Step("passed", "nothing failed") if known else Step()

    def stale(self, parts: Mapping[str, str]) -> dict[int, tuple[str, ...]]:
        """Steps to validate again, each with the parts that changed since.

        Args:
            parts: fingerprints of now; one that is left out is taken as unchanged.
        """
        out = {}
        for number, step in self.steps.items():
            changed = (name for name in parts if number in REVALIDATE[name] and step.parts.get(name, UNKNOWN) != parts[name])
            found = tuple(changed) if step.verdict in ("passed", "failed") else ()
            if found:
                out[number] = found
        return dict(sorted(out.items()))

    def table(self, parts: Mapping[str, str]) -> dict[str, Any]:
        """A table of a report: verdicts, with the steps that are stale under the fingerprints of now."""
        stale = self.stale(parts)
        rows = []
        for number, title in STEPS.items():
            step = self.step(number)
            again = f"stale: new {' and '.join(stale[number])}" if number in stale else "–"
            rows.append([f"{number} {title}", step.verdict, again, step.summary])
        matrix = "; ".join(f"new {part} → {', '.join(map(str, steps))}" for part, steps in REVALIDATE.items())
        fingerprints = ", ".join(f"{name} {value or 'none'}" for name, value in parts.items())
        note = f"What a change sends back: {matrix}. Fingerprints: {fingerprints}."
        return {"title": "Six steps", "columns": ["step", "verdict", "validate again", "by"], "rows": rows, "note": note}

    def save(self, path: Path | str) -> None:
        """Write the report as JSON."""
        plain = {str(number): dataclasses.asdict(step) for number, step in sorted(self.steps.items())}
        Path(path).write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> SixStepReport:
        """Read a report; an empty one if there is no file.

        Raises:
            ConfigError: the file holds something else.
        """
        if not Path(path).exists():
            return cls()
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls({int(n): Step(**{**step, "do": tuple(step["do"])}) for n, step in plain.items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            got = type(error).__name__
            raise ConfigError(f"expected the six steps as JSON in {path}, got {got}; do delete it and judge again") from error

    def _with(self, number: int, step: Step) -> SixStepReport:
        return SixStepReport({**self.steps, number: step})


def _check(number: int, parts: Mapping[str, str]) -> None:
    require(number in range(1, 6), "a step from 1 to 5", number, "record one of these; the sixth follows from them")
    unknown = sorted(set(parts) - set(REVALIDATE))
    require(not unknown, f"parts of {', '.join(REVALIDATE)}", unknown, "name them so")


def fingerprint(*things: Any) -> str:
    """Twelve hexadecimal digits of SHA-256 over configurations, code, plain values and arrays: equal only for equal parts.

    A configuration counts with its values and the source of the modules of its class and of its bases; a module, class or function with
    its source; a pytree with every array.

    Example:
        >>> fingerprint(Lorenz63()) == fingerprint(Lorenz63(steps=50))
        False
    """
    digest = hashlib.sha256()
    for thing in things:
        for piece in _pieces(thing):
            digest.update(hashlib.sha256(piece).digest())  # of each piece alone, so that pieces cannot run into each other
    return digest.hexdigest()[:12]


def _pieces(thing: Any) -> list[bytes]:
    if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing):
        return [_source(thing)]
    if dataclasses.is_dataclass(thing):
        return [json.dumps(to_dict(thing), sort_keys=True).encode(), *map(_source, modules_of(type(thing)))]
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return [repr(thing).encode()]
    pieces = [str(jax.tree.structure(thing)).encode()]
    for leaf in jax.tree.leaves(thing):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        pieces += [f"{array.dtype}{array.shape}".encode(), array.tobytes()]
    return pieces


def modules_of(cls: type) -> list[Any]:
    """The modules in which a class and its bases are written, without those of Python itself."""
    names = dict.fromkeys(base.__module__ for base in cls.__mro__)
    return [sys.modules[name] for name in names if name.split(".")[0] not in sys.stdlib_module_names]


def _source(thing: Any) -> bytes:
    try:
        return inspect.getsource(thing).encode()
    except (OSError, TypeError):  # typed into a console: its name is all there is
        return repr(getattr(thing, "__qualname__", thing)).encode()
