"""Judge a learned solver:  python -m eval.solver RUN_DIR [--windows 256] [--margin 10] [--oracle] [--oi 0.2]

The mean square error of its analyses on windows that training cannot have met, beside what needs no solver: interpolation of the
observations in time, a constant for each window, the climate. Its parts alone are in the table too: the learned descent, and Newton's
method or the climate's analysis from the same first guess; with --oracle, for systems of three components, the mean of the posterior,
which nothing beats; with --oi, for fields, optimal interpolation tuned on other windows. Writes solver.json.
Exit codes: 0 it beats each of the three by a factor of 2 in mean square error, and interpolation by the share asked for in its root; 1 it
does not; 2 a foreseeable error (one line).
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
from eval.mapping import SAME_DAY, resolved_scale, tuned_oi
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
ENOUGH = 400  # steps with which a Gaussian analysis has converged
MARGIN = 10  # of a series of hundreds of steps, as in the published set-up
OI, TUNING = "optimal interpolation", 8  # windows that it is tuned on


@dataclasses.dataclass(frozen=True)
class Options:
    """Judge a learned solver.

    Args:
        windows: held out.
        margin: time steps at either end of a window that are not scored; None is 10 of a series, 0 of fields.
        oracle: also the mean of the posterior by weighting millions of orbits: a third of a second a window.
        oi: for periodic fields, also optimal interpolation tuned on other windows, in three minutes; the root mean square error has to be
            smaller by this share.
    """

    windows: int = 256
    margin: int | None = None
    oracle: bool = False
    oi: float | None = None

    def __post_init__(self) -> None:
        require(self.windows > 0, "windows > 0", self.windows, "pass a positive number")
        require(self.margin is None or self.margin >= 0, "margin >= 0", self.margin, "pass 0 or more")
        require(self.oi is None or self.oi < 1, "oi < 1", self.oi, "pass a share such as 0.2")


class Row(NamedTuple):
    """One way to answer.

    Args:
        errors: mean square error of each window `(windows,)`.
        seconds: a window once compiled, None where that is nothing.
        scale: wavelength that fields are resolved to, in pixels, None where there are none.
    """

    errors: np.ndarray
    seconds: float | None
    scale: float | None = None


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
    if solver.climate is not None:
        found["climate alone"] = part(lambda solver, batch: solver.climate(batch))  # type: ignore[misc]
        found[f"the same, {ENOUGH} steps"] = part(lambda solver, batch: solver.climate(batch, ENOUGH))  # type: ignore[misc]
    return found


def interpolations(others: Batch) -> dict[str, Callable[[Batch], jax.Array]]:
    """Optimal interpolation of fields, tuned on other windows."""
    require(others.target.ndim == 4, "windows of fields for --oi", others.target.shape[1:], "leave it out")
    some = jax.tree.map(lambda leaf: leaf[:TUNING], others)
    return {OI: tuned_oi(some), "the same, of each day by itself": tuned_oi(some, SAME_DAY)}


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


def margin_of(options: Options, state: tuple[int, ...]) -> int:
    """Time steps left out at either end of a window `(times, …)`."""
    if options.margin is not None:
        return options.margin
    return MARGIN if len(state) == 2 else 0


def judge(trained: SolverRun, options: Options) -> dict[str, Row]:
    """Every row of the table."""
    simulator, gates = trained.experiment.simulator, trained.experiment.gates
    both = held_out(simulator, gates, options.windows + POOL)
    batch, others = (jax.tree.map(lambda leaf, part=part: leaf[part], both) for part in (slice(POOL, None), slice(POOL)))
    margin = margin_of(options, batch.target.shape[1:])
    inside = slice(margin, batch.target.shape[1] - margin)
    require(inside.start < inside.stop, f"a margin below half of {batch.target.shape[1]} steps", margin, "pass less")
    seen = batch._replace(target=None)

    def row(x: jax.Array, seconds: float | None = None) -> Row:
        wrong, truth = (x - batch.target)[:, inside], batch.target[:, inside]
        scale = resolved_scale(wrong, truth) if truth.ndim == 4 else None
        return Row(np.asarray(jnp.square(wrong).reshape(len(x), -1).mean(axis=1), np.float64), seconds, scale)

    ways, rows = answers(trained.solver), {}
    if options.oi is not None:
        ways |= interpolations(others)
    for name, answer in ways.items():
        jax.block_until_ready(answer(seen))  # compiles
        began = time.perf_counter()
        x = jax.block_until_ready(answer(seen))
        rows[name] = row(x, (time.perf_counter() - began) / options.windows)
    if options.oracle:
        mean, effective = posterior_mean(simulator, seen._replace(target=batch.target), gates_key(gates, 1))
        rows[f"posterior mean, {np.median(effective):.0f} orbits a window"] = row(mean)
    return rows | {name: row(x) for name, x in without_solver(batch, others.target).items()}


def table(rows: dict[str, Row], trained: SolverRun, options: Options) -> str:
    """The rows in Markdown."""
    best, fields = rows["analysis"].errors.mean(), rows["analysis"].scale is not None
    margin = margin_of(options, trained.experiment.simulator.spec.target.shape)
    left_out = f", {margin} steps at either end left out" if margin else ""
    lines = [
        f"\n| {trained.experiment.name}, {options.windows} windows{left_out} | mean square error "
        "| root mean square | median window | × analysis | milliseconds a window |" + (" resolved scale (pixels) |" if fields else ""),
        "|---|---|---|---|---|---|" + "---|" * fields,
    ]
    for name, row in rows.items():
        spent = "–" if row.seconds is None else f"{1000 * row.seconds:.2f}"
        error = row.errors.std(ddof=1) / np.sqrt(len(row.errors)) if len(row.errors) > 1 else np.nan
        mean = row.errors.mean()
        scale = f" {row.scale:.1f} |" if fields else ""
        numbers = f"{mean:.4f} ± {error:.4f} | {np.sqrt(mean):.4f} | {np.median(row.errors):.4f} | {mean / best:.2f}"
        lines.append(f"| {name} | {numbers} | {spent} |{scale}")
    return "\n".join(lines)


def verdict(rows: dict[str, Row], oi: float | None = None) -> tuple[bool, str]:
    """Whether the analysis beats what needs no solver, and by how much the nearest of them; and tuned interpolation, if that is asked."""
    best = rows["analysis"].errors.mean()
    factors = {name: float(row.errors.mean() / best) for name, row in rows.items() if name in NEEDS_NO_SOLVER}
    nearest = min(factors, key=lambda name: factors[name])
    passed = bool(np.isfinite(best)) and factors[nearest] > FACTOR
    told = f"mean square error {factors[nearest]:.1f} times smaller than that of {nearest}, more than {FACTOR:.0f} required"
    if oi is None:
        return passed, told
    share = 1 - float(np.sqrt(best / rows[OI].errors.mean()))
    told += f"; root mean square error {100 * share:.0f} % smaller than that of {OI}, at least {100 * oi:.0f} % required"
    return passed and share >= oi, told


def main(arguments: list[str]) -> int:
    """Judge and write; returns the exit code."""
    if (code := usage(__doc__, arguments)) is not None:
        return code
    run_dir = Path(arguments[0])
    options = parse(Options, Options(), arguments[1:], "python -m eval.solver RUN_DIR")
    trained = load_solver(run_dir)
    rows = judge(trained, options)
    passed, told = verdict(rows, options.oi)
    result: dict[str, Any] = {
        "passed": passed,
        "summary": told,
        "step": trained.step,
        **dataclasses.asdict(options),
        "margin": margin_of(options, trained.experiment.simulator.spec.target.shape),
        "rows": {name: {"mse": float(row.errors.mean()), "seconds": row.seconds, "scale": row.scale} for name, row in rows.items()},
    }
    write_atomically(run_dir / RESULT, json.dumps(result, indent=1))
    print(table(rows, trained, options))
    print(f"\n{'passed' if passed else 'FAILED'}: {told}")
    return 0 if passed else 1


if __name__ == "__main__":
    run(main)
