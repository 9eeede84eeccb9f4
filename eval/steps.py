"""The six steps of a run: which gate belongs to which step, what each was validated against, and the first of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import stats

from eval import compare, fourdvar
from train.config import Experiment
from vardax_flax.assimilation import cycle, posterior, solve
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import to_dict
from vardax_flax.core.interfaces import LeastSquares, Simulator
from vardax_flax.posteriors import Amortized
from vardax_flax.validation import GateResult
from vardax_flax.validation.six_step import UNKNOWN, SixStepReport, fingerprint, modules_of

FILE = "six_step.json"
PHYSICS = "physics forward"
STEP_OF = {PHYSICS: 1, "oracle": 2}  # every other gate is of the amortized head
OBSERVING = ("observe", "noise", "missing", "operator")  # how the fields of a simulator begin that say what is seen of a state
NO_EMULATOR = "the run uses the physics itself"
LEVEL = 1e-3


def parts_of(experiment: Experiment, trained: Amortized) -> dict[str, str]:
    """Fingerprints of what a run is made of."""
    values = to_dict(experiment.simulator)
    seen = {name: value for name, value in values.items() if name.startswith(OBSERVING)}
    rest = {name: value for name, value in values.items() if name not in seen}
    code = modules_of(type(experiment.simulator))
    return {
        "physics": fingerprint(str(rest), *code),
        "observation": fingerprint(str(seen)),
        "oracle": fingerprint(compare.make_oracle, compare.STARTS, fourdvar, solve, cycle, posterior),
        "emulator": UNKNOWN,
        "head": fingerprint(experiment.posterior, nnx.state(trained)),
    }


def six_steps(run_dir: Path, gates: list[GateResult], parts: dict[str, str]) -> SixStepReport:
    """The steps after a run of the gates: those of an emulator stay as they were recorded in the run directory."""
    report = SixStepReport.load(run_dir / FILE)
    for number in (1, 2, 5):
        report = report.record(number, [gate for gate in gates if STEP_OF.get(gate.name, 5) == number], parts)
    for number in (3, 4):
        if report.step(number).verdict in ("not run", "skipped"):
            report = report.skip(number, NO_EMULATOR, parts)
    return report


def current(report: SixStepReport, parts: dict[str, str]) -> dict[str, str]:
    """The parts to compare with: a run does not know the emulator that someone recorded, so it is taken as unchanged."""
    recorded = report.step(3).verdict in ("passed", "failed")
    return {name: value for name, value in parts.items() if name != "emulator" or not recorded}


def physics_forward(simulator: Simulator, batch: Batch) -> GateResult:
    """Are simulations finite, and are observations the forward model's predictions up to the noise it states?

    Of a least-squares simulator ‖r(x)‖² at the truth is χ² with as many degrees of freedom as there are prior components and observed
    values; two-sided, over all windows together.

    Args:
        simulator: to check.
        batch: simulations of it, one leading axis.
    """
    finite = [bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(batch)]
    details: dict[str, Any] = {"expected": "finite simulations", "worst": "values that are not finite", "do": "repair the simulator"}
    n = len(batch.input)
    if not all(finite):
        return GateResult(PHYSICS, False, 0.0, LEVEL, 0.0, f"values that are not finite among {n} simulations", details)
    if not isinstance(simulator, LeastSquares):
        return GateResult(PHYSICS, True, 1.0, None, None, f"{n} simulations are finite", details)
    residual = jax.jit(jax.vmap(simulator.residual))(batch.target, batch._replace(target=None))
    square = float(np.square(np.asarray(residual, np.float64)).sum())
    degrees = int(np.asarray(batch.mask).sum()) + batch.target.size
    below = float(stats.chi2.cdf(square, degrees))
    p_value = 2 * min(below, 1 - below)
    details |= {"expected": f"p > {LEVEL:g} for whitened residuals at the truth", "worst": f"p = {p_value:.2g}"}
    details |= {"do": "make `sample` and `residual` of the simulator agree"}
    summary = f"{n} simulations are finite; their residuals have a variance of {square / degrees:.3f}, 1 expected"
    return GateResult(PHYSICS, p_value > LEVEL, p_value, LEVEL, p_value, summary, details)
