"""Checkpoints: the whole `TrainState` in one orbax step, atomic, asynchronous, with a checksum, on any number of devices."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import logging
import os
import shutil
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vardax_flax.training.state import TrainState

FORMAT = 1
LONGEST_REASON = 250  # characters of what orbax says, which may be kilobytes
PENDING_READS = 0.2  # seconds until they have come back


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read: one line, *expected …, got …, do …*."""


def _named_leaves(state: Any) -> dict[str, Any]:
    """Leaves under flat names: readable on disk, and independent of how the containers are keyed."""
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _layout(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{np.dtype(leaf.dtype)}{list(np.shape(leaf))}" for name, leaf in leaves.items()}


def _checksum(leaves: dict[str, Any]) -> int:
    total = 0
    for name in sorted(leaves):
        total = zlib.crc32(np.ascontiguousarray(np.asarray(leaves[name])).tobytes(), zlib.crc32(name.encode(), total))
    return total


class _Mismatch(CheckpointError):
    """A sound checkpoint of something else; to fall back from it would hide the mistake."""


class Checkpoints:
    """The checkpoints of one run, newest two kept; each holds the latest *and* the best parameters.

    A save copies the state and returns; the files appear under their final name only when complete, so a killed run leaves either the
    whole step or none of it.

    Args:
        directory: of the checkpoints.
        keep: how many.
        read_only: only look: of a run that may be training at this moment nothing is cleaned up, and nothing is made.

    Example:
        >>> with Checkpoints(run_dir / "checkpoints") as checkpoints:
        ...     checkpoints.save(state)
    """

    def __init__(self, directory: Path, keep: int = 2, *, read_only: bool = False) -> None:
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax narrates every save, and errors are raised anyway
        self.directory = directory.absolute()
        self.read_only = read_only
        options = (
            ocp.CheckpointManagerOptions(read_only=True)
            if read_only
            else ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        )
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> Checkpoints:
        self._hook = sys.unraisablehook
        sys.unraisablehook = functools.partial(_without_closed_loops, self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        # after a failed background save, closing raises the same error again: it has been told already
        with contextlib.suppress(Exception):
            self.manager.close()
        sys.unraisablehook = self._hook

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def save(self, state: TrainState, *, wait: bool = False) -> None:
        """Save a state under its step; errors of the previous background save surface here.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        step = int(state.step)
        if step in self.manager.all_steps():  # perhaps still under way in the background
            if wait:
                self.wait()
            return
        leaves = {name: np.array(leaf) for name, leaf in _named_leaves(state).items()}  # a copy: the buffers will be donated
        meta = {"format": FORMAT, "checksum": _checksum(leaves), "layout": _layout(leaves)}
        try:
            self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta)))
            if wait:
                self.wait()
        except CheckpointError:
            raise
        except Exception as error:  # orbax wraps a failed background write in several types
            raise self._failed(error) from error

    def wait(self) -> None:
        """Wait for the background save."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> CheckpointError:
        reason = _first_line(error)
        kept = ", ".join(map(str, self.steps())) or "none"
        return CheckpointError(
            f"expected to write a checkpoint in {self.directory}, got {reason}; do free space or rights there (complete steps kept: {kept})"
        )

    def restore(self, like: TrainState, mesh: Mesh | None = None) -> TrainState:
        """The newest readable state, shaped like `like`, on the devices of `mesh`. A damaged step is passed over with a warning.

        Raises:
            CheckpointError: there is no checkpoint, or none is readable.
        """
        damaged: dict[int, str] = {}
        for step in self.steps():
            try:
                state = self._restore_step(step, like, mesh)
            except _Mismatch as error:
                raise CheckpointError(f"{error} (step {step} in {self.directory})") from error
            except Exception as error:
                damaged[step] = f"step {step}: {_first_line(error)}"
                continue
            if damaged:
                got = "; ".join(damaged.values())
                warnings.warn(f"expected a readable newest checkpoint, got {got}; going on from step {step}", stacklevel=2)
            if not self.read_only:
                for later in damaged:  # put aside: training will come by this step again, and could not save it under a name that is taken
                    aside = self.directory / f"{later}.damaged"
                    shutil.rmtree(aside, ignore_errors=True)
                    (self.directory / str(later)).rename(aside)
                self.manager.reload()
            return state
        got = "; ".join(damaged.values()) or "none"
        raise CheckpointError(f"expected a readable checkpoint in {self.directory}, got {got}; do train again with --overwrite")

    def _read(self, step: int, args: Any) -> Any:
        with _quiet():
            try:
                return self.manager.restore(step, args=args)
            except Exception as error:
                reason = _first_line(error)
            # the other reads of the step find their event loop closed, or are never awaited: let that happen while it is quiet
            time.sleep(PENDING_READS)
            gc.collect()
        raise CheckpointError(reason)

    def _restore_step(self, step: int, like: TrainState, mesh: Mesh | None) -> TrainState:
        sharding = NamedSharding(mesh, PartitionSpec()) if mesh is not None else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        meta = self._read(step, ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if meta.get("format") != FORMAT:
            raise _Mismatch(f"expected checkpoint format {FORMAT}, got {meta.get('format')}; do use the version that wrote it")
        wanted = _layout(_named_leaves(like))
        for name in sorted(wanted.keys() | meta["layout"].keys()):
            expected, got = wanted.get(name), meta["layout"].get(name)
            if expected != got:
                raise _Mismatch(f"expected {name} as {expected or 'absent'}, got {got or 'absent'}; do use the model that was trained")
        abstract = {n: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding) for n, x in _named_leaves(like).items()}
        leaves = self._read(step, ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]
        if _checksum(leaves) != meta["checksum"]:
            raise CheckpointError("the checksum differs: the files were damaged")
        flat, structure = jax.tree.flatten(like)
        return jax.tree.unflatten(structure, [leaves[name] for name in _named_leaves(like)])


def _first_line(error: Exception) -> str:
    if os.strerror(errno.ENOSPC) in str(error):
        return os.strerror(errno.ENOSPC)
    text = (str(error).strip() or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec")[0]
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + " …"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without orbax's warnings about devices and about what a failed read leaves behind."""
    asyncio = logging.getLogger("asyncio")
    asyncio.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        asyncio.disabled = False


def _without_closed_loops(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """After one file fails, orbax closes the event loop under the others, and each would print a trace of that."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        hook(unraisable)
