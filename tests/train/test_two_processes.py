"""One job of two processes, as on two hosts: the run of one process on two devices, and a stop asked of either ends both."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vardax_flax.training import read_metrics

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--fit.eval-every", "20", "--fit.checkpoint-every", "20", "--fit.held-out", "128", "--fit.steps-per-dispatch", "10"]
pytestmark = pytest.mark.slow


def train(run_dir, steps, *flags, **environment):
    command = [sys.executable, "-m", "train", "debug", "--run-dir", str(run_dir), "--fit.steps", str(steps), *FLAGS, *flags]
    settings = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def job(run_dir, steps, *flags):
    """The two processes of one job, each with one device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        train(run_dir, steps, "--distributed", *flags, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i))
        for i in range(2)
    ]


def finish(*processes):
    """Exit codes, with the standard error of those that failed."""
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "\n".join(errors)[-4000:]


def held_out(run_dir):
    return {line["step"]: line["held_out"] for line in read_metrics(run_dir)}


def test_two_processes_train_the_run_of_one(tmp_path):
    codes, errors = finish(*job(tmp_path / "two", 60))
    assert codes == [0, 0], errors
    codes, errors = finish(train(tmp_path / "one", 60, XLA_FLAGS="--xla_force_host_platform_device_count=2"))
    assert codes == [0], errors
    two, one = held_out(tmp_path / "two"), held_out(tmp_path / "one")
    assert list(two) == list(one) == [20, 40, 60]
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_asked_of_one_process_ends_both_and_the_run_goes_on(tmp_path, asked):
    """The run would take hours."""
    processes = job(tmp_path / "run", 10_000_000)
    deadline = time.monotonic() + 180
    try:
        while time.monotonic() < deadline and len(held_out(tmp_path / "run")) < 2 and all(process.poll() is None for process in processes):
            time.sleep(0.2)
        processes[asked].send_signal(signal.SIGTERM)
    finally:  # kills what does not end by itself
        codes, errors = finish(*processes)
    assert codes == [130, 130], errors
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert summary["status"] == "interrupted" and summary["devices"] == 2 and summary["step"] >= 40


def test_a_refused_run_directory_ends_both(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    codes, errors = finish(*job(tmp_path / "run", 20))
    assert codes == [2, 2], errors
    assert "expected an empty run directory" in errors
