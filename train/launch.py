"""Many processes, one job: join before the first use of a device, leave without waiting for the dead."""

from __future__ import annotations

import os

import jax

from vardax_flax.core.config import ConfigError

HEARTBEAT_SECONDS = 10  # the default leaves survivors of a dead process hanging for minutes

PLACE = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # JAX itself reads the address alone


def join_job() -> None:
    """Connect this process to the others of its job: SLURM, MPI and TPU pods are detected.

    Elsewhere three environment variables say where it belongs: `JAX_COORDINATOR_ADDRESS` (host:port of the first process),
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    Raises:
        ConfigError: there is no job to join.
    """
    try:
        count, index = (int(os.environ[name]) if name in os.environ else None for name in PLACE)
        jax.distributed.initialize(num_processes=count, process_id=index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        do = "do start through a launcher, or drop --distributed"
        raise ConfigError(f"expected a multi-process job to join, got {reason}; {do}") from error


def leave_job() -> None:
    """Disconnect, if this process had joined a job."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()
