"""The adjoints of one learned solver beside each other: error of the gradient, memory, time (`python -m eval.adjoint RUN_DIR`)."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree

from eval.events import held_out
from train.cli import parse
from train.config import load_solver
from vardax_flax.adjoints import Adjoint, ImplicitAdjoint, KStepAdjoint, OneStepAdjoint, RecursiveCheckpointAdjoint
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.fourdvarnet import FourDVarNet

ROUNDS = 5
EXACT = "all steps, everything kept"


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare the adjoints of a learned solver.

    Args:
        windows: held out, in the batch whose loss is differentiated.
    """

    windows: int = 16

    def __post_init__(self) -> None:
        require(self.windows > 0, "windows > 0", self.windows, "pass a positive number")


class Cost(NamedTuple):
    """One adjoint: relative error and cosine of its gradient, bytes of temporary memory, seconds of a gradient and of its compilation."""

    error: float
    cosine: float
    memory: int
    seconds: float
    compiled: float


def choices(steps: int) -> dict[str, Adjoint]:
    """The adjoints that are compared; the first is exact."""
    few = {f"last {k} steps": KStepAdjoint(k) for k in (2, 4, 8) if k < steps}
    return {
        EXACT: RecursiveCheckpointAdjoint(keep_all=True),
        "all steps, checkpoints": RecursiveCheckpointAdjoint(),
        **few,
        "last step": OneStepAdjoint(),
        "implicit, GMRES": ImplicitAdjoint(),
    }


def costs(solver: FourDVarNet, batch: Batch) -> dict[str, Cost]:
    """Every adjoint on the training loss of one batch, without what is random in it."""
    parts: Any = nnx.split(solver, nnx.Param, ...)
    graphdef, params, rest = parts
    found: dict[str, Cost] = {}
    exact: Any = None

    for name, adjoint in choices(solver.config.n_solver_steps).items():

        def loss(params: Any, batch: Batch, adjoint: Adjoint = adjoint) -> jax.Array:
            model = nnx.merge(graphdef, params, rest)
            model.adjoint = adjoint
            return jnp.square(model.scale(model.solve(batch).state) - model.scale(batch.target)).mean()

        began = time.perf_counter()
        compiled = jax.jit(jax.grad(loss)).lower(params, batch).compile()
        spent = time.perf_counter() - began
        gradient = np.asarray(ravel_pytree(compiled(params, batch))[0], np.float64)
        exact = gradient if exact is None else exact
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            jax.block_until_ready(compiled(params, batch))
            times.append(time.perf_counter() - began)
        size = max(float(np.linalg.norm(gradient) * np.linalg.norm(exact)), 1e-300)
        error = float(np.linalg.norm(gradient - exact) / np.linalg.norm(exact))
        memory: Any = compiled.memory_analysis()
        found[name] = Cost(error, float(gradient @ exact) / size, memory.temp_size_in_bytes, float(np.median(times)), spent)
    return found


def table(rows: dict[str, Cost], name: str, windows: int) -> str:
    """The rows in Markdown."""
    lines = [
        f"\n| {name}, {windows} windows | relative error of the gradient | cosine | memory, MiB | milliseconds | compile, s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row.error:.2g} | {row.cosine:.4f} | {row.memory / 2**20:.1f} | {1000 * row.seconds:.1f} | {row.compiled:.1f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def show_adjoints(run_dir: Path, arguments: list[str]) -> int:
    """Measure and print; returns the exit code."""
    options = parse(Options, Options(), arguments, "python -m eval.adjoint RUN_DIR")
    trained = load_solver(run_dir)
    batch = held_out(trained.experiment.simulator, trained.experiment.gates, options.windows)
    print(table(costs(trained.solver, batch), trained.experiment.name, options.windows))
    return 0
