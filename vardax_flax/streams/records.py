"""Simulations stored once and read many times: ArrayRecord shards of fixed-size raw records beside a `manifest.json`.

A record is one element: its fields' little-endian bytes in the order of the manifest, nothing else. Shards appear under their final name
only when complete, and `progress.json` (a manifest of the shards so far) names their checksums, so an interrupted write resumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, require, to_dict
from vardax_flax.core.interfaces import Simulator
from vardax_flax.streams.elements import first_fault, hide_unobserved
from vardax_flax.streams.indexed import IndexedStream
from vardax_flax.streams.manifest import (
    MANIFEST,
    PROGRESS,
    RERUN,
    SCHEMA_VERSION,
    Field,
    Manifest,
    RecordError,
    Shard,
    load_manifest,
    read_manifest,
    sha256_of,
)
from vardax_flax.streams.seeds import Domain, counters, simulate_batch

_WRITER_OPTIONS = "group_size:1,uncompressed"  # one record a group for random access; simulations do not compress


def write_records(
    simulator: Simulator,
    directory: Path | str,
    *,
    n: int,
    seed: int,
    fingerprint: Mapping[str, Any],
    shard_size: int = 8192,
    batch: int = 256,
    on_shard: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Simulate n elements on the device and store them; called again after an interruption, compute only the missing shards.

    Element i is drawn with the key of counter (TRAIN, 0, i) of the seed, whatever the batch, so stored simulations cannot meet those of
    gates or held-out data of the same seed.

    Args:
        simulator: any `Simulator` in JAX.
        directory: made if missing; one writer at a time.
        n: simulations, below 2**31.
        seed: of the simulations.
        fingerprint: JSON values that identify the simulator, such as `to_dict(config)`.
        shard_size: simulations in a file; readers keep every file open, so choose it for a few hundred files at most.
        batch: simulations in one jitted call.
        on_shard: called with (complete shards, all shards) as each one is found or written.

    Raises:
        ConfigError: a size that is not positive, a fingerprint that is not JSON.
        RecordError: the directory holds something else, the disk is full, a simulation is not finite.

    Example:
        >>> write_records(Lorenz63(), "data/l63", n=100_000, seed=0, fingerprint=to_dict(config))
        >>> stream = RecordStream("data/l63", batch_size=256)
    """
    require(0 < n < 2**31, "0 < n < 2**31", n, "pass such a number of simulations")
    require(shard_size > 0, "shard_size > 0", shard_size, "pass a positive size")
    require(batch > 0, "batch > 0", batch, "pass a positive size")
    require(0 <= seed < 2**32, "0 <= seed < 2**32", seed, "pass such a seed")
    directory = Path(directory)
    plan = _plan(simulator.spec, n, seed, shard_size, fingerprint)
    simulate = jax.jit(lambda pairs: simulate_batch(simulator, seed, pairs))
    with _writing(directory):
        complete = _resume(directory, plan)
        for done, (file, where) in enumerate(plan.files.items(), start=1):
            if file not in complete:
                records = _simulated(simulate, where, min(batch, shard_size, n), plan.record)
                complete[file] = _write_shard(directory / file, records)
                plan = dataclasses.replace(plan, shards=tuple(complete[name] for name in plan.files if name in complete))
                _write_json(directory / PROGRESS, plan)
            if on_shard is not None:
                on_shard(done, len(plan.files))
        plan = dataclasses.replace(plan, shards=tuple(complete[name] for name in plan.files))
        _write_json(directory / MANIFEST, plan)
        (directory / PROGRESS).unlink(missing_ok=True)
    return plan


def _plan(spec: Batch, n: int, seed: int, shard_size: int, fingerprint: Mapping[str, Any]) -> Manifest:
    fields = []
    for name, field in zip(spec._fields, spec, strict=True):
        if field is not None:
            dtype = np.dtype(field.dtype)
            require(dtype.kind in "fiub", f"`{name}` of a real dtype that numpy knows", dtype, "return float32 from the simulator")
            fields.append(Field(name, tuple(field.shape), dtype.newbyteorder("<").str))
    try:
        identity = json.loads(json.dumps(dict(fingerprint), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"expected a fingerprint of JSON values, got {fingerprint!r}; do pass to_dict(config) ({error})") from error
    try:
        library = importlib.metadata.version("vardax_flax")
    except importlib.metadata.PackageNotFoundError:  # used from a source tree that is not installed
        library = "unknown"
    return Manifest(SCHEMA_VERSION, n, seed, shard_size, tuple(fields), identity, library)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Hold the directory for one writer (released by the system if it dies) and turn a full disk into one line."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for stale in directory.glob("*.tmp"):
                stale.unlink()
            yield
        finally:
            os.close(handle)
    except BlockingIOError as error:
        raise RecordError(f"expected no other writer in {directory}, got one; do wait for it or write elsewhere") from error
    except (OSError, RuntimeError) as error:  # array_record reports a full disk as RuntimeError
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise RecordError(
            f"expected space for {directory}, got a full disk; do free some and re-run the simulation command (complete shards are kept)"
        ) from error


def _resume(directory: Path, plan: Manifest) -> dict[str, Shard]:
    """Shards of an earlier call that are still as they were written."""
    path = next((p for p in (directory / MANIFEST, directory / PROGRESS) if p.exists()), None)
    if path is None:
        return {}
    earlier = read_manifest(path)
    for name in ("n", "seed", "shard_size", "fields", "fingerprint"):
        old, new = getattr(earlier, name), getattr(plan, name)
        if old != new:
            raise RecordError(
                f"expected {name} {old} as stored in {directory}, got {new}; do write to another directory or delete this one"
            )
    return {s.file: s for s in earlier.shards if (directory / s.file).is_file() and sha256_of(directory / s.file) == s.sha256}


def _simulated(simulate: Callable[[np.ndarray], Batch], where: slice, batch: int, record: np.dtype) -> Iterator[np.ndarray]:
    """Structured records of simulations `where`, a batch at a time; every call has the same shape, so there is one compilation."""
    for first in range(where.start, where.stop, batch):
        drawn = jax.device_get(simulate(counters(Domain.TRAIN, 0, slice(first, first + batch))))
        drawn = hide_unobserved(Batch(*(None if f is None else np.asarray(f)[: where.stop - first] for f in drawn)))
        fault = first_fault(drawn)
        if fault is not None:
            raise RecordError(f"{fault[1]} in simulation {first + fault[0]}; do repair the simulator")
        rows = np.empty(len(drawn.input), record)
        for name in record.names or ():
            rows[name] = getattr(drawn, name)
        yield rows


def _write_shard(path: Path, records: Iterator[np.ndarray]) -> Shard:
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    try:
        writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        try:
            for rows in records:
                for row in rows:
                    writer.write(row.tobytes())
                count += len(rows)
        finally:
            writer.close()
        shard = Shard(path.name, count, temporary.stat().st_size, sha256_of(temporary))
        _publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return shard


def _write_json(path: Path, manifest: Manifest) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(json.dumps(to_dict(manifest), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _publish(temporary: Path, path: Path) -> None:
    """Give a file its final name once its bytes, and then its name, are on the disk."""
    _fsync(temporary)
    os.replace(temporary, path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _decode(records: Sequence[bytes], record: np.dtype) -> Batch:
    joined = b"".join(records)
    if len(joined) != len(records) * record.itemsize:
        raise RuntimeError(f"{len(records)} records of {len(joined)} bytes instead of {len(records) * record.itemsize}")
    rows = np.frombuffer(joined, record)
    return Batch(**{name: rows[name].astype(rows[name].dtype.newbyteorder("=")) for name in record.names or ()})


def _blame(directory: Path, shards: Sequence[Shard], error: Exception) -> RecordError:
    """Name the shard that no longer is what was written."""
    for shard in shards:
        path = directory / shard.file
        if not path.is_file() or sha256_of(path) != shard.sha256:
            return RecordError(f"expected {shard.count} readable records in {path}, got a corrupt shard; {RERUN}")
    return RecordError(f"expected readable records in {directory}, got {' '.join(str(error).split())}; do check the disk")


def read_records(directory: Path | str, *, verify: bool = False) -> Batch:
    """All stored simulations in memory.

    Args:
        directory: written by `write_records`.
        verify: compare the sha256 of every shard first.

    Returns:
        numpy arrays `(n, …)` in the order of simulation.

    Raises:
        RecordError: what `load_manifest` finds, or a shard that cannot be decoded.

    Example:
        >>> read_records("data/l63").target.shape
        (100000, 3)
    """
    directory = Path(directory)
    manifest = load_manifest(directory, verify=verify)
    batch = Batch(**{f.name: np.empty((manifest.n, *f.shape), f.dtype.lstrip("<")) for f in manifest.fields})
    for shard, where in zip(manifest.shards, manifest.files.values(), strict=True):
        try:
            with contextlib.closing(ArrayRecordReader(str(directory / shard.file))) as reader:
                part = _decode(reader.read_all(), manifest.record)
            for whole, values in zip(batch, part, strict=True):
                if whole is not None:
                    whole[where] = values
        except (RuntimeError, ValueError, IndexError) as error:
            raise _blame(directory, [shard], error) from error
    return batch


class RecordStream(IndexedStream):
    """Stored simulations on disk, shuffled anew in every epoch and read by random access.

    Args:
        directory: written by `write_records`.
        batch_size: global batch size.
        seed: of the held-out choice and of the shuffling.
        validation_fraction: share of the simulations that training never touches.

    Raises:
        RecordError: what `load_manifest` finds, or later a shard that cannot be decoded.

    Example:
        >>> stream = RecordStream("data/l63", batch_size=256)
        >>> batch = stream.payload(0, slice(0, 256))
    """

    def __init__(self, directory: Path | str, batch_size: int, seed: int = 0, validation_fraction: float = 0.1) -> None:
        self.directory = Path(directory)
        self.manifest = load_manifest(self.directory)
        super().__init__(self.manifest.n, batch_size, seed, validation_fraction)
        # with the range in the name the reader need not open every shard to count its records
        self._source = ArrayRecordDataSource([f"{self.directory / shard.file}[0:{shard.count}]" for shard in self.manifest.shards])

    @property
    def spec(self) -> Batch:
        return self.manifest.spec

    def read(self, indices: np.ndarray) -> Batch:
        try:
            return _decode(self._source.__getitems__(indices.tolist()), self.manifest.record)
        except (RuntimeError, ValueError, IndexError) as error:
            touched = np.unique(indices // self.manifest.shard_size)
            raise _blame(self.directory, [self.manifest.shards[i] for i in touched], error) from error
