"""Checkpoints under damage, full disks, kills and foreign files: never a wrong state, never a lost run."""

import builtins
import errno
import logging
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError
from vardax_flax.training import CheckpointError, Checkpoints, NonFiniteLossError, fit, open_run_dir, read_metrics
from vardax_flax.training.state import init_state


@pytest.fixture
def run_dir(parts, tmp_path):
    """A run of 40 steps with checkpoints at 30 and 40."""
    fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(), run_dir=tmp_path / "run", progress=False)
    return tmp_path / "run"


def steps(run_dir):
    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = (flip, truncate, lambda path: path.unlink())


def test_newest_two_are_kept(run_dir):
    assert steps(run_dir) == [40, 30]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:expected a readable newest checkpoint")
def test_no_single_damaged_file_gives_a_wrong_state(parts, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("vardax_flax.training.checkpoint.PENDING_READS", 0.02)
    _, like = init_state(parts.Mean(), parts.config().optim.build(40))
    newest = parts.state(run_dir, parts.Mean(), parts.config())
    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        good = {step: checkpoints._restore_step(step, like, None) for step in (30, 40)}
    parts.assert_same(newest, good[40])
    found = {30: 0, 40: 0}
    for file in sorted(path.relative_to(run_dir) for path in (run_dir / "checkpoints" / "40").rglob("*") if path.is_file()):
        for damage in (flip, truncate):
            copy = tmp_path / "copy"
            shutil.copytree(run_dir, copy)
            if (copy / file).stat().st_size:
                damage(copy / file)
                state = parts.state(copy, parts.Mean(), parts.config())
                parts.assert_same(state, good[int(state.step)])
                found[int(state.step)] += 1
            shutil.rmtree(copy)
    assert found[30] > 0  # some damage did matter


def damage_arrays(run_dir, step, damage):
    files = [path for path in (run_dir / "checkpoints" / str(step) / "state").rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        damage(path)


@mostly_slow("damage", DAMAGES, ids=("flip", "truncate", "delete"))
def test_training_goes_on_from_the_older_checkpoint(parts, run_dir, damage):
    whole = parts.state(run_dir, parts.Mean(), parts.config())
    damage_arrays(run_dir, 40, damage)
    with pytest.warns(UserWarning, match=r"got step 40: .*; going on from step 30"):
        result = fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(), run_dir=run_dir, resume=True, progress=False)
    assert (result.status, result.step) == ("finished", 40)
    parts.assert_same(parts.state(run_dir, parts.Mean(), parts.config()), whole)


def test_all_damaged_is_one_line(parts, run_dir):
    for step in (30, 40):
        damage_arrays(run_dir, step, truncate)
    with pytest.raises(CheckpointError, match=r"^expected a readable checkpoint in .*, got step 40: .*; step 30: .*; do .*$") as caught:
        parts.state(run_dir, parts.Mean(), parts.config())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_another_model_is_refused(parts, run_dir):
    with pytest.raises(CheckpointError, match=r"expected best_params\.head.* as float32\[.*\], got absent"):
        parts.state(run_dir, parts.posterior(), parts.config())


def test_a_changed_value_fails_the_checksum(parts, run_dir, monkeypatch):
    original = ocp.CheckpointManager.restore

    def changed(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        if "state" in found.keys():
            found["state"]["params.w"] = found["state"]["params.w"] + 1e-6
        return found

    monkeypatch.setattr(ocp.CheckpointManager, "restore", changed)
    with pytest.raises(CheckpointError, match="checksum differs"):
        parts.state(run_dir, parts.Mean(), parts.config())


def test_half_written_steps_are_ignored_and_only_training_cleans_them(parts, run_dir):
    half = run_dir / "checkpoints" / "50.orbax-checkpoint-tmp"
    shutil.copytree(run_dir / "checkpoints" / "40", half)
    assert int(parts.state(run_dir, parts.Mean(), parts.config()).step) == 40
    assert half.is_dir()  # it may be a save under way in the process that trains
    fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(steps=50), run_dir=run_dir, resume=True, progress=False)
    assert steps(run_dir)[0] == 50
    assert not half.exists()


def test_an_existing_run_is_refused_and_overwriting_keeps_foreign_files(parts, run_dir):
    (run_dir / "notes.txt").write_text("mine")
    (run_dir / "figures").mkdir()
    with pytest.raises(ConfigError, match=r"^expected an empty run directory, got .*; do pass --resume, --overwrite or another --run-dir$"):
        open_run_dir(run_dir).__enter__()
    with pytest.raises(ConfigError, match="got both"):
        open_run_dir(run_dir, resume=True, overwrite=True).__enter__()
    with pytest.raises(ConfigError, match="got a file"):
        open_run_dir(run_dir / "notes.txt").__enter__()
    assert steps(run_dir) == [40, 30]
    with open_run_dir(run_dir, overwrite=True):
        assert sorted(path.name for path in run_dir.iterdir() if path.name != ".lock") == ["figures", "notes.txt"]
        assert (run_dir / "notes.txt").read_text() == "mine"


HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_another_process_writes_is_left_alone(parts, run_dir):
    hold = [sys.executable, "-c", HOLD, str(run_dir / ".lock")]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match="^expected a run directory to itself, got .*, where another job is writing; do "):
                fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(), run_dir=run_dir, progress=False, **how)
        assert steps(run_dir) == [40, 30]
        other.kill()  # the lock goes with the process
    with open_run_dir(run_dir, resume=True):
        assert steps(run_dir) == [40, 30]


TRY = """
import sys
from pathlib import Path
from vardax_flax.training import open_run_dir
with open_run_dir(Path(sys.argv[1]), resume=True):
    pass
"""


@pytest.mark.slow
def test_what_holds_a_run_keeps_it_after_training_there(parts, run_dir, tmp_path):
    def another():
        return subprocess.run([sys.executable, "-c", TRY, str(run_dir)], capture_output=True, text=True)

    with open_run_dir(run_dir, resume=True):
        fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(), run_dir=run_dir, resume=True, progress=False)
        shutil.copytree(run_dir, tmp_path / "backup")  # reads the lock file too
        assert "expected a run directory to itself" in another().stderr
        with pytest.raises(ConfigError, match="^expected a run that is not being written, got .*; do "):
            open_run_dir(run_dir, overwrite=True).__enter__()
    assert another().returncode == 0


@pytest.fixture
def full_disk(monkeypatch):
    """Saves raise ENOSPC while `full_disk["full"]` says so."""
    original, disk = ocp.CheckpointManager.save, {"full": lambda step: True}

    def save(self, step, *args, **kwargs):
        if disk["full"](step):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    return disk


def test_a_full_disk_during_training_is_a_warning(parts, full_disk, tmp_path, caplog):
    full_disk["full"] = lambda step: step in (10, 20)
    with caplog.at_level(logging.INFO, "vardax_flax"):
        result = fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(), run_dir=tmp_path, progress=False)
    warned = [record.message for record in caplog.records if record.message.startswith("warning: ")]
    assert len(warned) == 2
    assert all("No space left" in line and "; do free space" in line and "\n" not in line for line in warned)
    assert result.status == "finished"
    assert steps(tmp_path) == [40, 30]


def test_a_full_disk_at_the_end_is_an_error_after_the_weights_are_handed_over(parts, full_disk, tmp_path):
    full_disk["full"] = lambda step: step == 40
    estimator, stream, config = parts.Mean(), parts.Pull(lambda step: 1.0, held_out=1.0), parts.config()
    with pytest.raises(CheckpointError, match=r"No space left.*complete steps kept: 30, 20"):
        fit(estimator, stream, config, run_dir=tmp_path, progress=False)
    reference = parts.Mean()
    fit(reference, stream, config, progress=False)
    parts.assert_same(parts.weights(estimator), parts.weights(reference))
    full_disk["full"] = lambda step: False
    assert fit(parts.Mean(), stream, config, run_dir=tmp_path, resume=True, progress=False).status == "finished"


def test_a_full_disk_does_not_hide_a_loss_that_is_not_finite(parts, full_disk, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"at step 25, got .*No space left"):
        fit(parts.Mean(), parts.Pull(lambda step: np.nan if step == 25 else 1.0), parts.config(), run_dir=tmp_path, progress=False)


def test_a_save_that_fails_in_the_background_is_told(parts, tmp_path, monkeypatch):
    _, state = init_state(parts.Mean(), parts.config().optim.build(40))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state)
        monkeypatch.setattr(
            checkpoints.manager, "wait_until_finished", lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
        )
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoints.save(state, wait=True)  # the same step again, as at an early stop
        monkeypatch.undo()


def test_a_full_disk_for_metrics_is_a_warning_and_heals(parts, tmp_path, caplog, monkeypatch):
    original, failed = builtins.open, []

    def full(path, mode="r", *args, **kwargs):
        if str(path).endswith("metrics.jsonl") and mode == "a" and len(failed) < 2:
            failed.append(path)
            with original(path, "a") as file:
                file.write('{"step": 10, "he')  # what fitted
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    with caplog.at_level(logging.INFO, "vardax_flax"):
        result = fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(), run_dir=tmp_path, progress=False)
    monkeypatch.undo()
    assert sum("No space left" in record.message for record in caplog.records) == len(failed) == 2
    assert read_metrics(tmp_path) == result.history
    assert len(result.history) == 4


def test_a_saved_state_keeps_every_dtype(parts, tmp_path):
    posterior, config = parts.posterior(), parts.config()
    _, state = init_state(posterior, config.optim.build(40))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, wait=True)
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    parts.assert_same(restored, jax.device_get(state))
