"""What a person sees while training runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger("vardax_flax")


class ProgressReport:
    """A rich bar with loss, steps/s and remaining time on a terminal; else one plain line for each evaluation.

    Args:
        total: steps of the run.
        start: step it starts from.
        show: False for silence (messages then go to the log only).
    """

    def __init__(self, total: int, start: int, show: bool) -> None:
        self.show = show
        self.total = total
        self.start = start
        self.began = time.perf_counter()
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.text = ""
        if show and self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("training", total=total, completed=start, text="compiling …")

    def __enter__(self) -> ProgressReport:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """One line for the user."""
        logger.info(text)
        if self.show:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, step: int, metrics: dict[str, Any] | None = None) -> None:
        """Steps done; with metrics after an evaluation."""
        if self.bar is not None:
            if metrics is not None:
                speed = f"{metrics['steps_per_second']:.0f} steps/s"
                self.text = f"loss {metrics['loss']:.4g}  held-out {metrics['held_out']:.4g}  {speed}"
            self.bar.update(self.task, completed=step, text=self.text)
        elif metrics is not None:
            speed = metrics["steps_per_second"]
            remaining = (self.total - step) / max(speed, 1e-9)
            self.say(
                f"step {step}/{self.total}  loss {metrics['loss']:.4f}  held-out {metrics['held_out']:.4f}  "
                f"{speed:.0f} steps/s  {remaining:.0f} s left"
            )
