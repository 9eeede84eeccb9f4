"""Records on disk: exact, resumable after a kill, and outspoken when damaged."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.streams.walk import Walk, write
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import Simulator
from vardax_flax.streams import (
    Domain,
    RecordError,
    RecordStream,
    counters,
    load_manifest,
    read_records,
    records,
    simulate_batch,
    write_records,
)

ROOT = Path(__file__).resolve().parents[2]
N, SHARD = 40, 16


def _write(directory, **changed):
    options = {"n": N, "seed": 3, "fingerprint": {"length": 5}, "shard_size": SHARD, "batch": 8, **changed}
    return write_records(Walk(), directory, **options)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("original")
    _write(directory)
    return directory


@pytest.fixture
def copy(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "copy"))


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _shard(directory: Path, i: int = 1) -> Path:
    return sorted(directory.glob("shard-*"))[i]


def test_records_are_the_simulations_of_their_counters(original):
    stored = read_records(original, verify=True)
    drawn = jax.jit(lambda pairs: simulate_batch(Walk(), 3, pairs))(counters(Domain.TRAIN, 0, slice(0, N)))
    np.testing.assert_allclose(stored.target, drawn.target, rtol=1e-6)
    np.testing.assert_array_equal(stored.mask, drawn.mask)
    np.testing.assert_allclose(stored.input, np.where(drawn.mask == 1, drawn.input, 0), rtol=1e-6)
    assert stored.target.dtype == np.float32 and stored.target.flags.writeable and stored.background is None


def test_every_dtype_and_shape_survives(tmp_path):
    class Mixed(Simulator):
        kind = "mixed"

        def sample(self, key):
            y = jax.random.normal(key, (2, 3))
            return Batch(
                y, y > -1e9, jax.random.randint(key, (), -9, 9), background=y.astype(np.float16), coords=jax.random.bits(key, (2, 3, 1))
            )

    write_records(Mixed(), tmp_path, n=5, seed=0, fingerprint={}, shard_size=3)
    stored, spec = read_records(tmp_path), RecordStream(tmp_path, 2).spec
    drawn = jax.vmap(Mixed().sample)(jax.random.split(jax.random.key(0), 5))
    for name, value, expected, one in zip(Batch._fields, stored, drawn, spec, strict=True):
        assert (value is None) == (one is None) == (expected is None), name
        if value is not None:
            assert value.dtype == expected.dtype == one.dtype and value.shape == expected.shape == (5, *one.shape), name
    np.testing.assert_array_equal(stored.background, stored.input.astype(np.float16))


def test_the_manifest_describes_the_shards(original):
    manifest = json.loads((original / "manifest.json").read_text())
    assert [shard["count"] for shard in manifest["shards"]] == [16, 16, 8]
    assert manifest["n"] == N and manifest["seed"] == 3 and manifest["fingerprint"] == {"length": 5}
    assert sorted(_contents(original)) == sorted(["manifest.json", *(shard["file"] for shard in manifest["shards"])])


def test_a_finished_write_is_not_repeated(copy, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in copy.glob("shard-*")}
    seen: list[tuple[int, int]] = []
    _write(copy, on_shard=lambda done, total: seen.append((done, total)))
    assert {path: path.stat().st_mtime_ns for path in copy.glob("shard-*")} == before and seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_only_the_damaged_shard_is_recomputed(copy, original, damage):
    _damage(_shard(copy), damage)
    before = {path.name: path.stat().st_ino for path in copy.glob("shard-*")}
    _write(copy)
    after = {path.name: path.stat().st_ino for path in copy.glob("shard-*")}
    assert [name for name in after if after[name] != before.get(name)] == [_shard(copy).name]
    assert _contents(copy) == _contents(original)


def _damage(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 255
        path.write_bytes(content)


@pytest.mark.parametrize(("damage", "got"), [("truncate", r"got \d+"), ("remove", "got no file")])
def test_a_truncated_or_missing_shard_is_found_at_opening(copy, damage, got):
    path = _shard(copy)
    _damage(path, damage)
    for open_records in (load_manifest, read_records, lambda directory: RecordStream(directory, 4)):
        with pytest.raises(RecordError, match=rf"expected \d+ bytes in {path}, {got}; do re-run the simulation command; only that shard"):
            open_records(copy)


def test_a_changed_byte_is_found_on_demand_and_when_read(copy):
    path = _shard(copy)
    _damage(path, "flip")
    with pytest.raises(RecordError, match=rf"expected sha256 \w+ of {path}, got \w+; do re-run"):
        load_manifest(copy, verify=True)
    with pytest.raises(RecordError, match=f"readable records in {path}, got a corrupt shard; do re-run"):
        read_records(copy)
    stream = RecordStream(copy, N, validation_fraction=0.0)
    with pytest.raises(RecordError, match=f"readable records in {path}, got a corrupt shard; do re-run") as caught:
        stream.payload(0, slice(0, N))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[: len(text) // 2], "expected JSON in"),
        (lambda text: "[]", "expected a manifest of version 1"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "expected a manifest of version 1 in .*, got version 2"),
        (lambda text: text.replace('"n": 40', '"n": "40"'), "expected a value of type int, got '40'"),
        (lambda text: text.replace('"n": 40', '"n": 4000000000000000'), "expected 250000000000000 shards of .*, got 3"),
        (lambda text: text.replace('"n": 40', '"n": 60'), "expected 4 shards of 60 simulations"),
        (lambda text: text.replace('"<f4"', '"O"', 1), "expected real fields of a Batch"),
        (lambda text: text.replace('"<f4"', '"nonsense"', 1), "expected a manifest of records"),
        (lambda text: text.replace('"name": "target"', '"name": "__class__"'), "expected real fields of a Batch"),
        (lambda text: text.replace("shard-00001", "../shard-00001"), "expected 16 records in"),
        (lambda text: text.replace('5\n', '500000\n', 1), "expected 16 records in"),  # the shape of `input`: more bytes than the file has
    ],
)  # fmt: skip
def test_a_corrupt_manifest_is_refused_before_anything_is_read(copy, edit, message):
    path = copy / "manifest.json"
    text = edit(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(RecordError, match=message) as caught:
        read_records(copy)
    assert "\n" not in str(caught.value) and "; do " in str(caught.value)


def test_other_contents_are_not_overwritten(copy, original):
    for changed, message in [
        ({"fingerprint": {"length": 6}}, "expected fingerprint {'length': 5} as stored in .*, got {'length': 6}; do write to another"),
        ({"seed": 4}, "expected seed 3 as stored in .*, got 4"),
        ({"n": 41}, "expected n 40"),
        ({"shard_size": 8}, "expected shard_size 16"),
    ]:
        with pytest.raises(RecordError, match=message):
            _write(copy, **changed)
    with pytest.raises(RecordError, match="expected fields"):
        write_records(Walk(length=6), copy, n=N, seed=3, fingerprint={"length": 5}, shard_size=SHARD)
    assert _contents(copy) == _contents(original)


def test_an_unfinished_write_cannot_be_read_and_is_resumed_exactly(original, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        _write(tmp_path, on_shard=stop)
    with pytest.raises(RecordError, match="got an unfinished write; do run the simulation command to its end"):
        read_records(tmp_path)
    with pytest.raises(RecordError, match="expected seed 3 as stored"):
        _write(tmp_path, seed=5)
    before = {path.name: path.stat().st_ino for path in tmp_path.glob("shard-*")}
    assert len(before) == 2
    _write(tmp_path)
    assert {name: (tmp_path / name).stat().st_ino for name in before} == before
    assert _contents(tmp_path) == _contents(original)


def test_no_directory_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="manifest.json, got no such file; do run the simulation command"):
        read_records(tmp_path / "nothing")


class _FullWriter(records.ArrayRecordWriter):
    """What array_record says when the disk is full."""

    def write(self, record):
        raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; writing")


def _full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("where", "what"), [("ArrayRecordWriter", _FullWriter), ("os.fsync", _full_disk), ("os.replace", _full_disk)])
def test_a_full_disk_leaves_complete_shards_and_no_debris(original, tmp_path, monkeypatch, where, what):
    def fill(done, total):
        if done == 2:
            monkeypatch.setattr(f"vardax_flax.streams.records.{where}", what)

    with pytest.raises(RecordError, match="expected space for .*, got a full disk; do free some and re-run") as caught:
        _write(tmp_path, on_shard=fill)
    assert "\n" not in str(caught.value)
    assert sorted(_contents(tmp_path)) == sorted(["progress.json", _shard(original, 0).name, _shard(original, 1).name])
    monkeypatch.undo()
    _write(tmp_path)
    assert _contents(tmp_path) == _contents(original)


def test_one_writer_at_a_time(copy):
    def second(done, total):
        _write(copy)

    with pytest.raises(RecordError, match="expected no other writer in .*, got one"):
        _write(copy, on_shard=second)
    _write(copy)


def test_a_simulation_that_is_not_finite_is_named(tmp_path):
    class Breaks(Simulator):
        kind = "breaks"

        def sample(self, key):
            drawn = Walk().sample(key)
            return drawn._replace(target=jax.numpy.where(drawn.target[0] > 1, jax.numpy.nan, drawn.target))

    drawn = jax.jit(lambda pairs: simulate_batch(Walk(), 3, pairs))(counters(Domain.TRAIN, 0, slice(0, N)))
    first = int(np.argmax(np.asarray(drawn.target[:, 0]) > 1))
    with pytest.raises(RecordError, match=f"expected finite `target`, got nan in simulation {first}; do repair"):
        write_records(Breaks(), tmp_path, n=N, seed=3, fingerprint={}, shard_size=SHARD, batch=4)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": 0}, "expected 0 < n < 2\\*\\*31, got 0"),
        ({"shard_size": 0}, "expected shard_size > 0, got 0"),
        ({"batch": 0}, "expected batch > 0, got 0"),
        ({"seed": -1}, "expected 0 <= seed"),
        ({"fingerprint": {"x": object()}}, "expected a fingerprint of JSON values"),
        ({"fingerprint": {"x": float("nan")}}, "expected a fingerprint of JSON values"),
    ],
)
def test_bad_options_are_refused(tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        _write(tmp_path / "new", **changed)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_killed_five_times_and_resumed_bit_for_bit(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    moments = random.Random(0)
    complete = 0
    for _ in range(5):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-m", "tests.streams.walk", str(killed)], cwd=ROOT, env=environment)
        deadline = time.monotonic() + 120
        while len(list(killed.glob("*.array_record"))) < complete + 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (killed / "manifest.json").exists()  # or it was not interrupted
        complete = len(list(killed.glob("*.array_record")))
    assert 10 <= complete < 80
    recorded = json.loads((killed / "progress.json").read_text())["shards"]
    kept = {shard["file"]: (killed / shard["file"]).stat().st_ino for shard in recorded}
    assert len(kept) >= complete - 1
    write(killed)
    write(whole)
    assert {name: (killed / name).stat().st_ino for name in kept} == kept
    assert _contents(killed) == _contents(whole)
