"""Many processes, one job: join before the first use of a device, leave without waiting for the dead."""

from __future__ import annotations

import jax

from vardax_flax.core.config import ConfigError

HEARTBEAT_SECONDS = 10  # the default leaves survivors of a dead process hanging for minutes


def join_job() -> None:
    """Connect this process to the others of its job (SLURM, MPI, TPU pods are detected; else JAX's environment variables).

    Raises:
        ConfigError: there is no job to join.
    """
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        do = "do start through a launcher, or drop --distributed"
        raise ConfigError(f"expected a multi-process job to join, got {reason}; {do}") from error


def leave_job() -> None:
    """Disconnect, if this process had joined a job."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()
