"""The run directory: what passes from training to evaluation. Metrics are one JSON object a line; nothing is overwritten unasked."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vardax_flax.core.config import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
CONFIG = "config.json"
SUMMARY = "run.json"
COMMAND = "command.txt"
REPORTS = ("report.json", "report.html", "report.md")
_OURS = (CHECKPOINTS, METRICS, CONFIG, SUMMARY, COMMAND, "tensorboard", *REPORTS)
_held: dict[tuple[int, Path], tuple[TextIO, int]] = {}  # locks of each process, and how many hold them
_holding = threading.Lock()


@contextlib.contextmanager
def open_run_dir(run_dir: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Make a run directory and keep other processes out of it while this one writes, refusing to touch an existing run unless told how.

    The lock goes with the process, however it ends; where there are no file locks (Windows, some network file systems) nothing is locked.
    A process may open again what it holds, but not overwrite it.

    Args:
        run_dir: the directory.
        resume: go on with the run that is there (or start, if there is none).
        overwrite: delete the files of the run that is there; files that are not ours stay.

    Raises:
        ConfigError: there is a run and neither flag is given, or both are, or the path is a file, or somebody is writing there.

    Example:
        >>> with open_run_dir(Path("runs/moons"), resume=True) as run_dir:
        ...     fit(posterior, stream, run_dir=run_dir, resume=True)
    """
    if resume and overwrite:
        raise ConfigError("expected one of --resume and --overwrite, got both; do pick one")
    try:
        if run_dir.exists() and not run_dir.is_dir():
            raise ConfigError(f"expected a directory at {run_dir}, got a file; do pick another --run-dir")
        run_dir.mkdir(parents=True, exist_ok=True)
        place = run_dir.resolve()
        first = _hold(place)
    except OSError as error:
        raise ConfigError(f"expected to write to {run_dir}, got {error.strerror}; do pick another --run-dir") from error
    try:
        existing = [name for name in _OURS if (run_dir / name).exists()]
        if existing and not (resume or overwrite):
            do = "do pass --resume, --overwrite or another --run-dir"
            raise ConfigError(f"expected an empty run directory, got {run_dir} with {existing[0]}; {do}")
        if existing and overwrite and not first:
            raise ConfigError(f"expected a run that is not being written, got {run_dir}, which this process writes; do finish that first")
        for name in existing if overwrite else ():
            path = run_dir / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield run_dir
    finally:
        _release(place)


def _hold(place: Path) -> bool:
    """Take the lock of a directory, or count one more holder in this process; whether this is the first.

    Raises:
        ConfigError: another process has it.
    """
    key = (os.getpid(), place)  # a forked child has not the lock of its parent
    with _holding:
        file, holders = _held.get(key, (None, 0))
        if file is None:
            file = open(place / LOCK, "a", encoding="utf-8")
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    file.close()
                    do = "do wait for that job or pick another --run-dir"
                    raise ConfigError(f"expected a run directory to itself, got {place}, where another job is writing; {do}") from error
        _held[key] = (file, holders + 1)
        return holders == 0


def _release(place: Path) -> None:
    """One holder less; the last gives the lock back."""
    key = (os.getpid(), place)
    with _holding:
        file, holders = _held.pop(key)
        if holders > 1:
            _held[key] = (file, holders - 1)
        else:
            file.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, oldest first; a last line cut short by a kill is left out."""
    path = run_dir / METRICS
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")  # always the same, so a killed run leaves at most one
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class MetricsLog:
    """Appends evaluations to `metrics.jsonl`; on resume, drops those after the step it resumes from.

    Args:
        run_dir: of the run; None keeps the metrics in memory only.
        start: step the run starts from.
    """

    def __init__(self, run_dir: Path | None, start: int) -> None:
        self.path = None if run_dir is None else run_dir / METRICS
        self.torn = False
        self.history = [] if run_dir is None else [line for line in read_metrics(run_dir) if line["step"] <= start]
        if self.path is not None:
            write_atomically(self.path, "".join(map(_as_json, self.history)))

    def append(self, line: dict[str, Any]) -> None:
        """Add one evaluation; a number that is not finite is written as null.

        Raises:
            OSError: the disk is full; the next call writes what is missing.
        """
        self.history.append(line)
        if self.path is None:
            return
        if self.torn:  # a full disk may have left half a line, which would hide all that follow
            write_atomically(self.path, "".join(map(_as_json, self.history)))
        else:
            self.torn = True
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_as_json(line))
        self.torn = False


def _as_json(line: dict[str, Any]) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(clean, allow_nan=False) + "\n"
