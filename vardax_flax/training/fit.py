"""The training loop: one function, one loop, for any `Estimator` on any `Stream`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from vardax_flax.core.config import check_choices, require
from vardax_flax.core.interfaces import Estimator
from vardax_flax.streams.stream import MAX_STEPS, Stream, materialize_of
from vardax_flax.training.checkpoint import CheckpointError, Checkpoints
from vardax_flax.training.examples import calibrate, held_out_blocks
from vardax_flax.training.half import structure_in_bfloat16
from vardax_flax.training.optim import OptimConfig
from vardax_flax.training.parallel import (
    anywhere,
    first_process,
    make_evaluation,
    make_mesh,
    make_train_chunk,
    process_rows,
    replicate,
    shard,
)
from vardax_flax.training.progress import ProgressReport
from vardax_flax.training.rundir import CHECKPOINTS, SUMMARY, MetricsLog, open_run_dir, write_atomically
from vardax_flax.training.state import TrainState, count_parameters, init_state, load_into

PAYLOAD_BYTES = 32 * 2**20  # of one dispatch: large fields take fewer steps at a time


class NonFiniteLossError(RuntimeError):
    """Training met a loss or gradient that is not finite; the estimator holds the best state before it."""


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How long to train and how to look at it.

    Args:
        steps: optimiser steps of the whole run.
        seed: of the loss's own randomness.
        eval_every: steps between evaluations on the held-out set, which are also the lines of `metrics.jsonl`.
        held_out: number of held-out examples (at most as many as there are for offline data); whole batches are filled up by repetition.
        patience: stop after so many evaluations without a better held-out loss; None never stops early.
        checkpoint_every: steps between checkpoints, rounded up to evaluations.
        steps_per_dispatch: at most so many steps in one call to the device (fewer for large fields).
        compute_dtype: "bfloat16" multiplies in the networks in that precision while training; weights, loss, evaluations and the trained
            model's answers stay in float32.
        optim: the optimiser.

    Example:
        >>> config = FitConfig(steps=2000, optim=OptimConfig(learning_rate=5e-4))
    """

    steps: int = 10_000
    seed: int = 0
    eval_every: int = 500
    held_out: int = 2048
    patience: int | None = None
    checkpoint_every: int = 2000
    steps_per_dispatch: int = 50
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("steps", "eval_every", "held_out", "checkpoint_every", "steps_per_dispatch"):
            require(getattr(self, name) > 0, f"{name} > 0", getattr(self, name), "pass a positive number")
        require(self.steps < MAX_STEPS, f"steps < {MAX_STEPS}", self.steps, "train less")
        require(self.patience is None or self.patience > 0, "patience > 0 or None", self.patience, "pass a positive number")


class FitResult(NamedTuple):
    """What training gives back.

    Args:
        estimator: the module passed in, now holding the best parameters.
        status: "finished", "stopped early" or "interrupted".
        step: last step done.
        best_step, best_loss: of the held-out evaluation.
        history: one dict for each evaluation.
        timings: seconds "until the first step", in which all was made ready, and in all of {"compile", "train"}.
    """

    estimator: Estimator
    status: str
    step: int
    best_step: int
    best_loss: float
    history: list[dict[str, Any]]
    timings: dict[str, float]


def fit(
    estimator: Estimator,
    stream: Stream,
    config: FitConfig | None = None,
    *,
    run_dir: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    devices: Sequence[jax.Device] | None = None,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
) -> FitResult:
    """Train an estimator on a stream over all devices of the job, by min over θ of E[loss].

    AdamW on the mean gradient of all devices (see `training.parallel`), evaluation of the averaged parameters on fixed held-out examples,
    the best of them kept. SIGTERM or Ctrl-C saves and returns; a second Ctrl-C leaves at once.

    Args:
        estimator: changed in place; holds the best parameters afterwards, also after an error (before any evaluation: the latest average).
        stream: simulations.
        config: length, evaluation, optimiser.
        run_dir: where checkpoints and metrics go; None keeps everything in memory.
        resume: go on from the newest checkpoint of `run_dir`, bit for bit as if never stopped (on the same number of devices).
        overwrite: replace the run that is there.
        devices: to train on; all by default.
        on_metrics: called with each line of metrics (for TensorBoard and the like).
        progress: show a bar or lines.

    Raises:
        ConfigError: a batch size that the devices do not divide, or an existing run without `resume` or `overwrite`.
        NonFiniteLossError: with the step and what was not finite; the last good state is saved.
        CheckpointError: the final state could not be written; the estimator holds it.

    Example:
        >>> posterior = AmortizedConfig().build(simulator, nnx.Rngs(0))
        >>> fit(posterior, SeedStream(simulator, batch_size=256), FitConfig(steps=2000))
    """
    config = FitConfig() if config is None else config
    loop = _Loop(estimator, stream, config, make_mesh(devices))  # whatever is wrong with the arguments shows before a run is touched
    directory = None if run_dir is None else Path(run_dir)
    with contextlib.ExitStack() as stack:
        if directory is not None:
            first_process(lambda: stack.enter_context(open_run_dir(directory, resume=resume, overwrite=overwrite)))
            loop.checkpoints = stack.enter_context(Checkpoints(directory / CHECKPOINTS))
            if resume and loop.checkpoints.steps():
                loop.state = loop.checkpoints.restore(loop.state, loop.mesh)
        start = int(loop.state.step)
        require(start <= config.steps, f"steps >= {start}, where the run to resume is", config.steps, "pass more steps or overwrite=True")
        first = jax.process_index() == 0
        if directory is not None and first:
            (directory / SUMMARY).unlink(missing_ok=True)  # of the earlier part: until this part ends, the run has not
        loop.log, loop.on_metrics = MetricsLog(directory if first else None, start), on_metrics
        loop.report = stack.enter_context(ProgressReport(config.steps, start, progress and first))
        if resume and start:
            loop.report.say(f"resuming at step {start}")
        result = loop.run_safely(stack.enter_context(_stop_requested()))
        if directory is not None and first:
            _write_summary(directory, result, loop.mesh.size)
    return result


class _Loop:
    """State and parts of one call of `fit`."""

    def __init__(self, estimator: Estimator, stream: Stream, config: FitConfig, mesh: Any) -> None:
        self.began = time.perf_counter()
        self.estimator, self.stream, self.config, self.mesh = estimator, stream, config, mesh
        self.rows = process_rows(stream.batch_size, mesh)
        calibrate(estimator, stream)
        optimizer = _optimizer(config.optim, config.steps)
        graphdef, state = init_state(estimator, optimizer)
        self.state: TrainState = replicate(state, mesh)
        self.per_dispatch = _steps_per_dispatch(config, stream, self.rows)
        structure = structure_in_bfloat16(estimator) if config.compute_dtype == "bfloat16" else graphdef
        ema = config.optim.ema_decay
        self.train: Any = make_train_chunk(structure, optimizer, materialize_of(stream), mesh, seed=config.seed, ema_decay=ema)
        self.evaluate: Any = make_evaluation(graphdef, mesh, seed=config.seed)
        self.held_out = shard(held_out_blocks(stream, config.held_out, self.rows), mesh)
        self.checkpoints: Checkpoints | None = None
        self.log = MetricsLog(None, 0)
        self.report = ProgressReport(config.steps, 0, False)
        self.on_metrics: Callable[[dict[str, Any]], None] | None = None
        self.timings = {"until the first step": 0.0, "compile": 0.0, "train": 0.0}

    def run_safely(self, stop: threading.Event) -> FitResult:
        """Run; whatever happens, the caller's module holds what was learned, and the run directory too where it can."""
        try:
            status = self.run(stop)
        except (NonFiniteLossError, CheckpointError):  # saved already, or not to be had
            raise
        except Exception:
            self.rescue()  # of the stream or of a callback: nothing trained may be lost by it
            raise
        finally:
            self.hand_over()
        return self.result(status)

    def run(self, stop: threading.Event) -> str:
        """Steps, evaluations and checkpoints until the end; returns the status."""
        step = saved = int(self.state.step)
        began = time.perf_counter()
        interval: list[Any] = []  # sums of the dispatches since the last evaluation, still on the device
        interval_start, clock = step, None
        status = "finished"
        if self._out_of_patience():  # the run to resume had stopped
            return "stopped early"
        for payload, n in self._payloads(step):
            sums = self._dispatch(payload, step, n)
            clock = time.perf_counter() if clock is None else clock
            interval.append(sums)
            step += n
            if len(interval) > 1:
                jax.block_until_ready(interval[-2])  # at most two dispatches under way
            if step % self.config.eval_every == 0 or step == self.config.steps:
                self._evaluate(interval, step, interval_start, clock)
                interval, interval_start, clock = [], step, time.perf_counter()
                if step - saved >= self.config.checkpoint_every and step < self.config.steps:
                    self._save()
                    saved = step
                if self._out_of_patience():
                    self.report.say(f"no better held-out loss than at step {int(self.state.best_step)}: stopping")
                    status = "stopped early"
                    break
            else:
                self.report.update(step)
            if anywhere(stop.is_set()) and step < self.config.steps:
                self.report.say(f"asked to stop: saving step {step}")
                status = "interrupted"
                break
        self._check_finite(interval)
        self.timings["train"] = time.perf_counter() - began - self.timings["compile"]
        self._save(final=True)
        return status

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and int(self.state.bad_evals) >= self.config.patience

    def _payloads(self, start: int) -> Iterator[tuple[Any, int]]:
        """Payloads of one dispatch each, padded to one shape, with their number of steps; cut at multiples of `per_dispatch`."""
        # never one: the compiler treats that case differently, and the last bit would depend on the length of a dispatch
        length = max(2, self.per_dispatch)
        aligned = min(-(-start // self.per_dispatch) * self.per_dispatch, self.config.steps)
        for first, last in ((start, aligned), (aligned, self.config.steps)):
            if first == last:
                continue
            for payload in self.stream.iterate(first, last, self.rows, per_item=self.per_dispatch):
                n = jax.tree.leaves(payload)[0].shape[0]
                yield shard(jax.tree.map(functools.partial(_pad, length=length), payload), self.mesh), n

    def _dispatch(self, payload: Any, start: int, n: int) -> Any:
        arguments = (self.state, payload, np.int32(start), np.int32(n))
        if not isinstance(self.train, jax.stages.Compiled):
            self.report.say("compiling the training step …")
            self.train = self._compile(self.train, *arguments)
            self.timings["until the first step"] = time.perf_counter() - self.began
            self.report.say(f"compiled in {self.timings['compile']:.1f} s; training on {self.mesh.size} device(s)")
        self.state, sums = self.train(*arguments)
        return sums

    def _compile(self, function: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        compiled = function.lower(*arguments).compile()
        self.timings["compile"] += time.perf_counter() - began
        return compiled

    def _evaluate(self, interval: list[Any], step: int, start: int, clock: float) -> None:
        self._check_finite(interval)
        if not isinstance(self.evaluate, jax.stages.Compiled):
            # not beside the step: each takes all cores to compile, and the first step is what a user waits for
            before = self.timings["compile"]
            self.evaluate = self._compile(self.evaluate, self.state, self.held_out)
            clock += self.timings["compile"] - before
        totals = jax.tree.map(lambda *leaves: float(np.sum([np.asarray(leaf) for leaf in leaves])), *interval)
        self.state, measured = self.evaluate(self.state, self.held_out)
        loss = float(measured)
        elapsed = time.perf_counter() - clock
        metrics = {"step": step, "held_out": loss, **{k: v / (step - start) for k, v in totals.items()}}
        metrics["steps_per_second"] = (step - start) / max(elapsed, 1e-9)
        if not np.isfinite(loss):
            raise NonFiniteLossError(
                f"expected a finite held-out loss at step {step}, got {loss}{self._save_before_raising(step)}; "
                "do look at the held-out data, or lower the learning rate"
            )
        try:
            self.log.append(metrics)
        except OSError as error:
            self.report.say(f"warning: expected to write {self.log.path}, got {error.strerror}; do free space, training goes on")
        self.report.update(step, metrics)
        if self.on_metrics is not None:
            self.on_metrics(metrics)

    def _check_finite(self, interval: list[Any]) -> None:
        if bool(self.state.ok):
            return
        step = int(self.state.step)
        bad = sorted({name for sums in interval for name, total in sums.items() if not np.isfinite(total).all()})
        self.state = self.state._replace(ok=replicate(np.ones((), bool), self.mesh))
        raise NonFiniteLossError(
            f"expected a finite loss and gradient at step {step}, got no finite {', '.join(bad)}{self._save_before_raising(step)}; "
            "do start anew with a lower optim.learning_rate or optim.clip_norm, or look at the simulations of that step"
        )

    def _save_before_raising(self, step: int) -> str:
        if self.checkpoints is None:
            return ""
        try:
            self._save(final=True)
        except CheckpointError as error:  # must not hide why training stops
            return f" (and {error})"
        return f" (last good state saved as checkpoint {step})"

    def _save(self, *, final: bool = False) -> None:
        if self.checkpoints is None:
            return
        try:
            self.checkpoints.save(self.state, wait=final)
        except CheckpointError as error:
            if final:
                raise
            self.report.say(f"warning: {error}; training goes on")

    def rescue(self) -> None:
        """Save the state if it is whole, before an error that is not of training leaves."""
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)) and bool(self.state.ok):
            self.report.say(f"an error stopped training{self._save_before_raising(int(self.state.step))}")

    def hand_over(self) -> None:
        """Write what was learned into the caller's module; if the state itself was lost in a failed step, keep to that error."""
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):
            load_into(self.estimator, jax.device_get(self.state))

    def result(self, status: str) -> FitResult:
        """Numbers of the finished loop."""
        state = self.state
        return FitResult(
            self.estimator, status, int(state.step), int(state.best_step), float(state.best_loss), self.log.history, self.timings
        )


@functools.lru_cache(maxsize=16)
def _optimizer(config: OptimConfig, steps: int) -> Any:
    return config.build(steps)  # one object for each configuration: it is part of the key under which a compiled step is kept


def _pad(leaf: np.ndarray, length: int) -> np.ndarray:
    missing = length - len(leaf)
    return np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf


def _steps_per_dispatch(config: FitConfig, stream: Stream, rows: slice) -> int:
    """The largest divisor of `eval_every` within the limit on steps and on the memory of one payload."""
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(stream.payload(0, rows)))
    limit = max(1, min(config.steps_per_dispatch, PAYLOAD_BYTES // max(size, 1)))
    return max(k for k in range(1, limit + 1) if config.eval_every % k == 0)


@contextlib.contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that SIGTERM or the first Ctrl-C sets; the second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: Any) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _write_summary(run_dir: Path, result: FitResult, devices: int) -> None:
    """`run.json`: how the run ended. Written last, so its presence means a clean end."""
    summary = {name: getattr(result, name) for name in ("status", "step", "best_step", "timings")}
    summary["best_loss"] = result.best_loss if np.isfinite(result.best_loss) else None  # interrupted before the first evaluation
    summary |= {"parameters": count_parameters(result.estimator), "devices": devices}
    write_atomically(run_dir / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
