"""Train a preset:  python -m train PRESET [--run-dir DIR] [--resume | --overwrite] [--nested.flags]

Exit codes: 0 finished, 2 a foreseeable error (one line), 130 interrupted and saved (go on with --resume).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from train.cli import parse, run
from train.config import Experiment, load_experiment, save_experiment
from train.launch import join_job, leave_job
from train.presets import describe_presets, load_preset
from vardax_flax.core.config import ConfigError, require, to_dict
from vardax_flax.training import Checkpoints, fit, open_run_dir
from vardax_flax.training.parallel import first_process, make_mesh, process_rows
from vardax_flax.training.rundir import CHECKPOINTS, COMMAND, CONFIG, REPORTS
from vardax_flax.training.state import count_parameters

USAGE = """usage: python -m train PRESET [--run-dir DIR] [--resume | --overwrite] [--nested.flags]

presets:
{}

Flags of one: python -m train PRESET --help"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a preset.

    Args:
        experiment: what to train; every value is a flag.
        run_dir: where checkpoints, metrics and the configuration go; runs/PRESET by default.
        resume: go on with the run that is there.
        overwrite: replace the run that is there.
        tensorboard: also write TensorBoard events to the run directory.
        quiet: no progress.
        distributed: join the processes of a multi-host job before anything else.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    run_dir: str | None = None
    resume: bool = False
    overwrite: bool = False
    tensorboard: bool = False
    quiet: bool = False
    distributed: bool = False


def main(arguments: list[str]) -> int:
    """Train; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(describe_presets()))
        return 0
    preset = load_preset(arguments[0])
    options = parse(Options, Options(preset), arguments[1:], f"python -m train {arguments[0]}")
    if not options.distributed:
        return _train(options, arguments)
    join_job()
    try:
        return _train(options, arguments)
    finally:
        leave_job()


def _train(options: Options, arguments: list[str]) -> int:
    experiment = options.experiment
    run_dir = Path(options.run_dir or f"runs/{experiment.name}")
    # whatever is wrong with the flags shows before a run is touched
    writer = _summary_writer() if options.tensorboard and jax.process_index() == 0 else None
    stream, posterior = experiment.stream(), experiment.begin()
    process_rows(experiment.batch_size, make_mesh())
    with contextlib.ExitStack() as stack:
        command = "python -m train " + shlex.join(arguments)
        first_process(lambda: stack.enter_context(_prepared(run_dir, options, command)))
        if jax.process_index() == 0 and not options.quiet:
            print(f"{experiment.name}: {count_parameters(posterior):,} parameters, {run_dir}", file=sys.stderr)
        on_metrics = None if writer is None else _tensorboard(writer(str(run_dir / "tensorboard")))
        result = fit(posterior, stream, experiment.fit, run_dir=run_dir, resume=True, progress=not options.quiet, on_metrics=on_metrics)
    if jax.process_index() == 0:
        print(f"{result.status} at step {result.step}: best held-out loss {result.best_loss:.4f} at step {result.best_step}, in {run_dir}")
    return 130 if result.status == "interrupted" else 0


@contextlib.contextmanager
def _prepared(run_dir: Path, options: Options, command: str) -> Iterator[None]:
    """The run directory ready and ours for as long as this lasts, or a refusal."""
    with open_run_dir(run_dir, resume=options.resume, overwrite=options.overwrite):
        if options.resume and (run_dir / CONFIG).exists():
            _check_resumable(load_experiment(run_dir), options.experiment, run_dir / CHECKPOINTS)
        save_experiment(options.experiment, run_dir)
        (run_dir / COMMAND).write_text(command + "\n", encoding="utf-8")
        for stale in REPORTS:  # a report belongs to weights that are about to change
            (run_dir / stale).unlink(missing_ok=True)
        yield


def _check_resumable(before: Experiment, now: Experiment, checkpoints: Path) -> None:
    """A resumed run may be longer or looked at differently, but must be the same model on the same data."""
    for name in ("simulator", "posterior", "batch_size", "data_seed", "seed", "records", "validation_fraction", "observe_anew"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            raise ConfigError(f"expected the {name} of the run to resume, got another one; do keep it, or start anew with --overwrite")
    old_fit, new_fit = to_dict(before.fit), to_dict(now.fit)
    if any(old_fit[name] != new_fit[name] for name in ("seed", "optim", "compute_dtype")):
        do = "do keep them, or start anew with --overwrite"
        raise ConfigError(f"expected the seed, optimiser and precision of the run to resume, got others; {do}")
    optim = now.fit.optim
    if optim.schedule == "cosine" and optim.schedule_steps is None and before.fit.steps != now.fit.steps:
        do = f"keep {before.fit.steps} steps, or start anew with --fit.optim.schedule-steps set"
        raise ConfigError(f"expected the length of the run to resume, which its cosine follows, got {now.fit.steps} steps; do {do}")
    if checkpoints.is_dir():
        with Checkpoints(checkpoints, read_only=True) as saved:
            done = max(saved.steps(), default=0)
        require(done <= now.fit.steps, f"fit.steps >= {done}, where the run to resume is", now.fit.steps, "pass more steps, or --overwrite")


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        do = "do pip install -e .[tensorboard]"
        raise ConfigError(f"expected the tensorboard extra for --tensorboard, got no tensorboardX; {do}") from error
    return SummaryWriter


def _tensorboard(writer: Any) -> Callable[[dict[str, Any]], None]:
    def write(metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if name != "step":
                writer.add_scalar(name, value, metrics["step"])
        writer.flush()

    return write


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(main)
