"""A run that is killed and resumed until it ends is the run that was left alone, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from train.__main__ import main as train
from train.config import load_experiment, load_run
from vardax_flax.training import Checkpoints, read_metrics
from vardax_flax.training.state import init_state

ROOT = Path(__file__).resolve().parents[2]
EVERY = 100
SCHEDULE = 100_000  # far more than any run here lasts before it is killed


def flags(steps):
    every = ("--fit.eval-every", EVERY, "--fit.checkpoint-every", EVERY, "--fit.steps-per-dispatch", 10)
    schedule = ("--fit.optim.schedule-steps", SCHEDULE)  # of every run, whatever its length
    return [str(word) for word in ("--quiet", "--batch-size", 64, "--fit.held-out", 64, "--fit.steps", steps, *schedule, *every)]


def start(run_dir, steps):
    command = [sys.executable, "-m", "train", "debug", "--run-dir", str(run_dir), "--resume", *flags(steps)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def newest(run_dir):
    """Step of the newest complete checkpoint by its name alone, or -1."""
    directory = run_dir / "checkpoints"
    return max((int(path.name) for path in directory.glob("*") if path.name.isdigit()), default=-1) if directory.is_dir() else -1


def leaves(run_dir):
    experiment = load_experiment(run_dir)
    _, like = init_state(experiment.build(), experiment.fit.optim.build(experiment.fit.steps))
    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.restore(like))]


def assert_same_run(run_dir, whole, untold=("steps_per_second",)):
    for a, b in zip(leaves(run_dir), leaves(whole), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    timeless = [[{k: v for k, v in line.items() if k not in untold} for line in read_metrics(one)] for one in (run_dir, whole)]
    assert timeless[0] == timeless[1]


def check_after_kill(run_dir):
    """Whatever moment it was: loadable, and no more than what was done since the last complete save is gone."""
    done = read_metrics(run_dir)[-1]["step"] if read_metrics(run_dir) else 0
    step = newest(run_dir)
    # one save may be under way when the evaluation after it is written, so it and the one interval since may be lost
    assert done - max(step, 0) <= 2 * EVERY
    if step >= 0:
        assert load_run(run_dir).step <= step


def wait_for(process, reached, seconds=120):
    """Until `reached()` or the end of the process."""
    end = time.monotonic() + seconds
    while process.poll() is None and not reached():
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.01)


def stop(process, number):
    """Send a signal and reap; returns the exit code and stderr."""
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def finish(run_dir, steps):
    process = start(run_dir, steps)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert f"finished at step {steps}" in out
    assert err == ""


def finish_both(directory):
    """End the run that was cut a little further on, and make the same one in one go; on a fixed schedule the length is free."""
    total = (newest(directory / "cut") // EVERY + 3) * EVERY
    assert total < SCHEDULE
    assert train(["debug", "--run-dir", str(directory / "whole"), *flags(total)]) == 0
    finish(directory / "cut", total)


@pytest.mark.slow
def test_two_kills_and_a_polite_stop(tmp_path):
    steps = SCHEDULE
    process = start(tmp_path / "cut", steps)
    wait_for(process, lambda: newest(tmp_path / "cut") >= 0)
    assert stop(process, signal.SIGKILL)[0] == -signal.SIGKILL
    check_after_kill(tmp_path / "cut")

    process, before = start(tmp_path / "cut", steps), newest(tmp_path / "cut")
    wait_for(process, lambda: newest(tmp_path / "cut") > before + EVERY)
    code, err = stop(process, signal.SIGTERM)
    assert (code, err) == (130, "")
    summary = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert summary["status"] == "interrupted"
    assert newest(tmp_path / "cut") == summary["step"] > before
    reached = summary["step"]

    process = start(tmp_path / "cut", steps)
    wait_for(process, lambda: newest(tmp_path / "cut") > reached)
    assert stop(process, signal.SIGKILL)[0] == -signal.SIGKILL
    check_after_kill(tmp_path / "cut")
    assert not (tmp_path / "cut" / "run.json").exists()

    finish_both(tmp_path)
    # the polite stop fell between evaluations: the training means of that interval cover the steps since
    assert_same_run(tmp_path / "cut", tmp_path / "whole", untold=("steps_per_second", "loss", "grad_norm"))


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path):
    moments, cut, start_up = random.Random(0), tmp_path / "cut", 0.0
    for kill in range(20):
        began, target = time.monotonic(), newest(cut) + moments.randrange(1, 6) * EVERY
        process = start(cut, SCHEDULE)
        if kill % 4 == 3:  # while it starts, reads its checkpoint and compiles
            time.sleep(moments.uniform(0, start_up))
        else:  # some saves later, at a random moment of the next steps, evaluation or save
            wait_for(process, lambda reached=target: newest(cut) >= reached)
            start_up = time.monotonic() - began
            time.sleep(moments.uniform(0, 0.1))
        assert stop(process, signal.SIGKILL)[0] == -signal.SIGKILL, "the run ended before it was killed: give it more steps"
        check_after_kill(cut)
    finish_both(tmp_path)
    assert_same_run(cut, tmp_path / "whole")
