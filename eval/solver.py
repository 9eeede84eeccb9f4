"""Judge a learned solver:  python -m eval.solver RUN_DIR [--windows 256] [--margin 10] [--oracle]

The mean square error of its analyses on windows that training cannot have met, beside what needs no solver: interpolation of the
observations in time, a constant for each window, the climate. Its parts alone are in the table too: the learned descent, and Newton's
method from the same first guess; and with --oracle, for systems of three components, the mean of the posterior, which nothing beats.
Writes solver.json.
Exit codes: 0 it beats each of the three by a factor of 2 in mean square error, 1 it does not, 2 a foreseeable error (one line).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.events import gates_key, held_out
from eval.orbits import posterior_mean
from train.cli import parse, run, usage
from train.config import SolverRun, load_solver
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.fourdvarnet import FourDVarNet
from vardax_flax.ops.cores import over_cores
from vardax_flax.ops.interpolate import interpolate_in_time
from vardax_flax.training.rundir import write_atomically

RESULT = "solver.json"
FACTOR = 2.0  # in mean square error, over each predictor that needs no solver
NEEDS_NO_SOLVER = ("interpolation in time", "constant, mean of the observations", "climatology")
POOL = 256  # other windows, whose mean is the climate


@dataclasses.dataclass(frozen=True)
class Options:
    """Judge a learned solver.

    Args:
        windows: held out.
        margin: time steps at either end of a window that are not scored.
        oracle: also the mean of the posterior by weighting millions of orbits: a third of a second a window.
    """

    windows: int = 256
    margin: int = 10
    oracle: bool = False

    def __post_init__(self) -> None:
        require(self.windows > 0, "windows > 0", self.windows, "pass a positive number")
        require(self.margin >= 0, "margin >= 0", self.margin, "pass 0 or more")


class Row(NamedTuple):
    """One way to answer: mean square error of each window `(windows,)`, and seconds a window once compiled, None where that is nothing."""

    errors: np.ndarray
    seconds: float | None


def answers(solver: FourDVarNet) -> dict[str, Callable[[Batch], jax.Array]]:
    """The solver and its parts, of batches `(windows, …)`."""
    graphdef, state = nnx.split(solver)

    def part(function: Callable[[FourDVarNet, Batch], jax.Array]) -> Callable[[Batch], jax.Array]:
        compiled = over_cores(lambda batch, state: function(nnx.merge(graphdef, state), batch))
        return lambda batch: compiled(batch, state)

    found: dict[str, Callable[[Batch], jax.Array]] = {"analysis": solver}
    if solver.newton is not None:
        if solver.newton.config.place == "last":
            found["learned descent alone"] = part(lambda solver, batch: solver.solve(batch).state)
        found["Newton alone"] = part(lambda solver, batch: newton_alone(solver, batch))
    return found


def newton_alone(solver: FourDVarNet, batch: Batch) -> jax.Array:
    """Newton's method from where the descent would start without it."""
    assert solver.newton is not None
    return solver.newton(solver.scale.inverse(solver.filled(batch)), batch)


def without_solver(batch: Batch, others: jax.Array) -> dict[str, jax.Array]:
    """What a solver has to beat."""
    count = jnp.maximum(batch.mask.sum(axis=1, keepdims=True), 1)
    constant = jnp.where(batch.mask > 0, batch.input, 0).sum(axis=1, keepdims=True) / count
    answers = (
        jax.vmap(interpolate_in_time)(batch.input, batch.mask),
        jnp.broadcast_to(constant, batch.target.shape),
        jnp.broadcast_to(others.mean(axis=(0, 1)), batch.target.shape),
    )
    return dict(zip(NEEDS_NO_SOLVER, answers, strict=True))


def judge(trained: SolverRun, options: Options) -> dict[str, Row]:
    """Every row of the table."""
    simulator, gates = trained.experiment.simulator, trained.experiment.gates
    both = held_out(simulator, gates, options.windows + POOL)
    batch, others = (jax.tree.map(lambda leaf, part=part: leaf[part], both) for part in (slice(POOL, None), slice(POOL)))
    inside = slice(options.margin, batch.target.shape[1] - options.margin)
    require(inside.start < inside.stop, f"a margin below half of {batch.target.shape[1]} steps", options.margin, "pass less")
    error = lambda x: np.asarray(jnp.square(x - batch.target)[:, inside].reshape(len(x), -1).mean(axis=1), np.float64)  # noqa: E731
    seen, rows = batch._replace(target=None), {}
    for name, answer in answers(trained.solver).items():
        jax.block_until_ready(answer(seen))  # compiles
        began = time.perf_counter()
        x = jax.block_until_ready(answer(seen))
        rows[name] = Row(error(x), (time.perf_counter() - began) / options.windows)
    if options.oracle:
        mean, effective = posterior_mean(simulator, seen._replace(target=batch.target), gates_key(gates, 1))
        rows[f"posterior mean, {np.median(effective):.0f} orbits a window"] = Row(error(mean), None)
    return rows | {name: Row(error(x), None) for name, x in without_solver(batch, others.target).items()}


def table(rows: dict[str, Row], trained: SolverRun, options: Options) -> str:
    """The rows in Markdown."""
    best = rows["analysis"].errors.mean()
    lines = [
        f"\n| {trained.experiment.name}, {options.windows} windows, {options.margin} steps at either end left out | mean square error "
        "| median window | × analysis | milliseconds a window |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        spent = "–" if row.seconds is None else f"{1000 * row.seconds:.2f}"
        error = row.errors.std(ddof=1) / np.sqrt(len(row.errors)) if len(row.errors) > 1 else np.nan
        mean = row.errors.mean()
        lines.append(f"| {name} | {mean:.4f} ± {error:.4f} | {np.median(row.errors):.4f} | {mean / best:.2f} | {spent} |")
    return "\n".join(lines)


def verdict(rows: dict[str, Row]) -> tuple[bool, str]:
    """Whether the analysis beats what needs no solver, and by how much the nearest of them."""
    best = rows["analysis"].errors.mean()
    factors = {name: float(row.errors.mean() / best) for name, row in rows.items() if name in NEEDS_NO_SOLVER}
    nearest = min(factors, key=lambda name: factors[name])
    passed = bool(np.isfinite(best)) and factors[nearest] > FACTOR
    return passed, f"mean square error {factors[nearest]:.1f} times smaller than that of {nearest}, more than {FACTOR:.0f} required"


def main(arguments: list[str]) -> int:
    """Judge and write; returns the exit code."""
    if (code := usage(__doc__, arguments)) is not None:
        return code
    run_dir = Path(arguments[0])
    options = parse(Options, Options(), arguments[1:], "python -m eval.solver RUN_DIR")
    trained = load_solver(run_dir)
    rows = judge(trained, options)
    passed, told = verdict(rows)
    result: dict[str, Any] = {
        "passed": passed,
        "summary": told,
        "step": trained.step,
        **dataclasses.asdict(options),
        "rows": {name: {"mse": float(row.errors.mean()), "seconds": row.seconds} for name, row in rows.items()},
    }
    write_atomically(run_dir / RESULT, json.dumps(result, indent=1))
    print(table(rows, trained, options))
    print(f"\n{'passed' if passed else 'FAILED'}: {told}")
    return 0 if passed else 1


if __name__ == "__main__":
    run(main)
