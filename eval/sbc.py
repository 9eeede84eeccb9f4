"""Simulation-based calibration of a run, alone:  python -m eval.sbc RUN_DIR [--n-runs 1000] [--n-samples 99]

Exit codes: 0 passed, 1 failed, 2 a foreseeable error (one line).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from eval.judge import Judge
from train.cli import parse, run, usage
from train.config import GatesConfig, load_run
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Head


def main(arguments: list[str]) -> int:
    """Judge by SBC alone; returns the exit code."""
    if (code := usage(__doc__, arguments)) is not None:
        return code
    trained = load_run(Path(arguments[0]))
    head = trained.posterior.head
    require(isinstance(head, Head), "a head that draws", repr(head.kind), "judge a run of another head")
    gates = parse(GatesConfig, trained.experiment.gates, arguments[1:], "python -m eval.sbc RUN_DIR")
    judge = Judge(dataclasses.replace(trained.experiment, gates=gates), trained.posterior, None)
    result = judge.sbc()
    print(f"{'passed' if result.passed else 'FAILED'}: {result.summary} ({judge.timings[-1]['seconds']:.1f} s)")
    return 0 if result.passed else 1


if __name__ == "__main__":
    run(main)
