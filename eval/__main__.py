"""Judge a run:  python -m eval RUN_DIR [--reference FILE | --no-reference] [--out DIR] [--stale]

Runs every gate that applies, lists those that do not with the reason, writes report.json, report.md, report.html and six_step.json.
With --stale nothing is run: the six steps as they were validated, and which of them a change since then makes stale.
Exit codes: 0 no gate failed, 1 a gate failed, 2 a foreseeable error (one line).
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from eval.events import gates_key
from eval.judge import Judge
from eval.present import coverage_table, reference_table, training_record, versions, windows
from eval.reference import Reference, check_shapes, load_reference
from eval.steps import FILE, current, parts_of, six_steps
from train.cli import parse, run, usage
from train.config import Run, load_run
from train.presets import load_preset
from vardax_flax.core.config import to_dict
from vardax_flax.core.interfaces import Head
from vardax_flax.report import write_report
from vardax_flax.training.rundir import COMMAND, SUMMARY
from vardax_flax.training.state import count_parameters
from vardax_flax.validation import GateResult
from vardax_flax.validation.result import word
from vardax_flax.validation.six_step import STEPS, SixStepReport


@dataclasses.dataclass(frozen=True)
class Options:
    """Judge a run and write its report.

    Args:
        reference: npz of observations with independent posteriors; the preset's own by default.
        no_reference: leave it out.
        out: where the report goes; the run directory by default.
        stale: only show the six steps, and which of them has to be validated again.
    """

    reference: str | None = None
    no_reference: bool = False
    out: str | None = None
    stale: bool = False


def main(arguments: list[str]) -> int:
    """Judge; returns the exit code."""
    if (code := usage(__doc__, arguments)) is not None:
        return code
    run_dir = Path(arguments[0])
    options = parse(Options, Options(), arguments[1:], "python -m eval RUN_DIR")
    trained = load_run(run_dir)
    out = Path(options.out) if options.out else run_dir
    if options.stale:
        return show_steps(out, trained)
    reference, why_not = _reference(trained, options)
    judge = Judge(trained.experiment, trained.posterior, reference, why_not)
    began = time.perf_counter()
    gates = judge.run()
    judge.timings.append({"what": "all gates", "seconds": time.perf_counter() - began, "note": None})
    parts = parts_of(trained.experiment, trained.posterior)
    steps = six_steps(out, gates, parts)
    results = assemble(run_dir, trained, gates, judge)
    results["tables"].insert(0, steps.table(current(steps, parts)))
    page = write_report(results, out)
    steps.save(out / FILE)
    for gate in gates:
        print(f"{word(gate):<12} {gate.name}: {gate.summary}")
    failed = [gate.name for gate in gates if gate.passed is False]
    print(f"{'FAILED: ' + ', '.join(failed) if failed else 'no gate failed'}; report in {page}")
    return 1 if failed else 0


def show_steps(out: Path, trained: Run) -> int:
    """Print the six steps of a report against the run as it is now; 1 if one is stale or failed."""
    steps, parts = SixStepReport.load(out / FILE), parts_of(trained.experiment, trained.posterior)
    table = steps.table(current(steps, parts))
    print("\n".join(" | ".join(row) for row in table["rows"]))
    print(table["note"])
    done = all(steps.step(number).verdict in ("passed", "skipped") for number in STEPS)
    return 0 if done and not steps.stale(current(steps, parts)) else 1


def _reference(trained: Run, options: Options) -> tuple[Reference | None, str]:
    """The reference that fits the run, or the reason why there is none."""
    path = options.reference or trained.experiment.gates.reference
    if options.no_reference or path is None:
        why = "left out by --no-reference" if options.no_reference else f"no reference posterior comes with {trained.experiment.name}"
        return None, why
    name = trained.experiment.name
    if options.reference is None and trained.experiment.simulator != load_preset(name).simulator:
        return None, f"the simulator was changed by flags, and the reference belongs to that of {name}"
    reference = load_reference(path)
    check_shapes(reference, trained.posterior.spec)
    return reference, ""


def assemble(run_dir: Path, trained: Run, gates: list[GateResult], judge: Judge) -> dict[str, Any]:
    """Everything the report says, as one dictionary."""
    experiment, posterior, reference = trained.experiment, trained.posterior, judge.reference
    summary_file = run_dir / SUMMARY
    summary: dict[str, Any] = {"status": "not finished", "timings": {}}
    if summary_file.exists():
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
    training_times = [{"what": f"training: {what}", "seconds": s, "note": None} for what, s in summary["timings"].items()]
    tables = [*judge.tables, coverage_table(next(gate for gate in gates if gate.name == "coverage"))]
    if reference is not None and isinstance(posterior.head, Head):
        tables.insert(len(judge.tables), reference_table(posterior, reference, gates_key(experiment.gates, 9)))
    return {
        "title": f"Can the {experiment.name} posterior be trusted?",
        "run": {
            "preset": experiment.name,
            "config": to_dict(experiment) | {"status": summary["status"]},
            "command": f"{_trained_by(run_dir, experiment.name)} && python -m eval {run_dir}",
            "seed": experiment.seed,
            "parameters": count_parameters(posterior),
        },
        "versions": versions(),
        "timings": training_times + judge.timings,
        "gates": [gate._asdict() for gate in gates],
        "training": training_record(run_dir, trained.step),
        "tables": [table for table in tables if table is not None],
        "windows": windows(experiment, posterior, reference),
    }


def _trained_by(run_dir: Path, preset: str) -> str:
    """The command line that started the run."""
    file = run_dir / COMMAND
    return file.read_text(encoding="utf-8").strip() if file.exists() else f"python -m train {preset} --run-dir {run_dir}"


if __name__ == "__main__":
    run(main)
