"""What a directory of stored simulations holds: layout, origin and checksum of every shard, as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, from_dict

SCHEMA_VERSION = 1
MANIFEST, PROGRESS = "manifest.json", "progress.json"
RERUN = "do re-run the simulation command; only that shard is recomputed"


class RecordError(RuntimeError):
    """Stored simulations that cannot be read or written: one line, *expected …, got …, do …*."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a record: name in `Batch`, shape of one element, little-endian numpy dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """One complete file: its name, its number of records, its size in bytes and its checksum."""

    file: str
    count: int
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a directory of records holds, and what it was simulated from.

    Args:
        version: of this schema.
        n: simulations, over all shards.
        seed: of the simulations.
        shard_size: simulations in every shard but the last.
        fields: layout of one record.
        fingerprint: what identifies the simulator, as JSON.
        library: version that wrote the shards.
        shards: complete files, in order.
    """

    version: int
    n: int
    seed: int
    shard_size: int
    fields: tuple[Field, ...]
    fingerprint: dict[str, Any]
    library: str
    shards: tuple[Shard, ...] = ()

    @property
    def record(self) -> np.dtype:
        """One record as a packed structured dtype."""
        return np.dtype([(field.name, field.dtype, field.shape) for field in self.fields])

    @property
    def spec(self) -> Batch:
        """Shapes and dtypes of one element."""
        return Batch(**{f.name: jax.ShapeDtypeStruct(f.shape, np.dtype(f.dtype).newbyteorder("=")) for f in self.fields})

    @property
    def files(self) -> dict[str, slice]:
        """Name and range of simulations of every shard that belongs here, complete or not."""
        starts = range(0, self.n, self.shard_size)
        name = f"shard-{{:05d}}-of-{len(starts):05d}.array_record"
        return {name.format(i): slice(start, min(start + self.shard_size, self.n)) for i, start in enumerate(starts)}


def sha256_of(path: Path) -> str:
    """Checksum of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest by itself, complete or of an unfinished write."""
    do = "do delete it and re-run the simulation command"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"expected JSON in {path}, got {' '.join(str(error).split())}; {do}") from error
    version = value.get("version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"expected a manifest of version {SCHEMA_VERSION} in {path}, got version {version}; {do}")
    try:
        manifest = from_dict(Manifest, value)
        names = {name for name in Batch._fields if name in {field.name for field in manifest.fields}}
        known = len(names) == len(manifest.fields) and {"input", "mask"} <= names
        real = all(np.dtype(f.dtype).kind in "fiub" and min(f.shape, default=0) >= 0 for f in manifest.fields)
    except (ConfigError, TypeError) as error:
        raise RecordError(f"expected a manifest of records in {path}, got {' '.join(str(error).split())}; {do}") from error
    if not (known and real and manifest.n > 0 and manifest.shard_size > 0):
        raise RecordError(f"expected real fields of a Batch and positive sizes in {path}, got {manifest.fields}, n = {manifest.n}; {do}")
    return manifest


def load_manifest(directory: Path | str, *, verify: bool = False) -> Manifest:
    """Open stored simulations: read the manifest, and compare every file with it before anything is allocated.

    Args:
        directory: written by `write_records`.
        verify: also compare the sha256 of every shard, which reads all of them.

    Raises:
        RecordError: no manifest, a corrupt one, or a shard that is missing, truncated or (with `verify`) changed.

    Example:
        >>> load_manifest("data/l63", verify=True).n
        100000
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        got = "an unfinished write" if (directory / PROGRESS).is_file() else "no such file"
        raise RecordError(f"expected {directory / MANIFEST}, got {got}; do run the simulation command to its end")
    manifest = read_manifest(directory / MANIFEST)
    shards = -(-manifest.n // manifest.shard_size)
    if len(manifest.shards) != shards:  # by arithmetic: a corrupt n may be astronomical
        raise RecordError(
            f"expected {shards} shards of {manifest.n} simulations in {directory / MANIFEST}, got {len(manifest.shards)}; {RERUN}"
        )
    for shard, (file, where) in zip(manifest.shards, manifest.files.items(), strict=True):
        path = directory / file
        if (shard.file, shard.count) != (file, where.stop - where.start) or shard.size < shard.count * manifest.record.itemsize:
            raise RecordError(f"expected {where.stop - where.start} records in {path}, got an entry {shard} in {MANIFEST}; {RERUN}")
        size = path.stat().st_size if path.is_file() else None
        if size != shard.size:
            raise RecordError(f"expected {shard.size} bytes in {path}, got {'no file' if size is None else size}; {RERUN}")
        if verify and (digest := sha256_of(path)) != shard.sha256:
            raise RecordError(f"expected sha256 {shard.sha256} of {path}, got {digest}; {RERUN}")
    return manifest
