"""Loss, gradient and whole runs are those of one device on any number of devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slow import mostly_slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.devices
@mostly_slow("what", ["2", "4", "runs"])
def test_one_two_and_four_devices_agree(tmp_path, what):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_ENABLE_X64": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("devices.py")), what, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **flags}, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "devices agree" in done.stdout
