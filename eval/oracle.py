"""The amortized answer beside a classical oracle on held-out windows:  python -m eval.oracle RUN_DIR [--windows N]

Agreement, scores and cost of both; what the amortized answer is worth as 4D-Var's first guess and as a proposal of importance sampling;
and predictors that do not look at the observation. Exit codes: 0 no gate failed, 1 a gate failed, 2 a foreseeable error (one line).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from eval.judge import WINDOWS, Judge
from train.cli import parse, run, usage
from train.config import load_run
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Head
from vardax_flax.report.render import number
from vardax_flax.validation.result import word


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare a run with its oracle.

    Args:
        windows: held-out windows.
    """

    windows: int = WINDOWS

    def __post_init__(self) -> None:
        require(self.windows >= 10, "windows >= 10", self.windows, "pass more")


def main(arguments: list[str]) -> int:
    """Compare; returns the exit code."""
    if (code := usage(__doc__, arguments)) is not None:
        return code
    options = parse(Options, Options(), arguments[1:], "python -m eval.oracle RUN_DIR")
    trained = load_run(Path(arguments[0]))
    head = trained.posterior.head
    require(isinstance(head, Head), "a head that draws", repr(head.kind), "judge a run of another head")
    judge = Judge(trained.experiment, trained.posterior, None, windows=options.windows)
    gates = judge.against_oracle()
    for table in judge.tables:
        print("\n".join(["", table["title"], " | ".join(table["columns"])]))
        print("\n".join(" | ".join(number(cell) for cell in row) for row in table["rows"]))
        print(table["note"])
    print()
    for gate in gates:
        print(f"{word(gate):<12} {gate.name}: {gate.summary}")
    return 1 if any(gate.passed is False for gate in gates) else 0


if __name__ == "__main__":
    run(main)
