"""Adjoint calibration of a run:  python -m eval.adjoint RUN_DIR [--events 100] [--n-probes 10] [--draws 256] [--threshold 0.05]

Does the posterior mean move with the observation as the oracle's does? On held-out observations ∂x̂/∂y is compared with that of the exact
posterior mean (`Conjugate` simulators), or of the mode that Gauss–Newton finds for the window (`LeastSquares` simulators; there a posterior
that is not Gaussian has its mean elsewhere, and the comparison is with that difference in). Other simulators have no oracle: skipped.

Prints the verdict and writes adjoint.json into the run directory.
Exit codes: 0 passed or skipped, 1 failed or inconclusive, 2 a foreseeable error (one line).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from eval.judge import gates_key, held_out
from train.cli import parse, run
from train.config import Experiment, load_run
from vardax_flax.assimilation import GaussNewton
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Conjugate, Head, LeastSquares, Simulator
from vardax_flax.heads import RegressionHead
from vardax_flax.posteriors import Amortized
from vardax_flax.posteriors.sobolev import exact_estimate
from vardax_flax.training.rundir import write_atomically
from vardax_flax.validation import GateResult, adjoint_calibration, skipped, to_json

RESULT = "adjoint.json"
Estimate = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare how the posterior mean moves with the observation.

    Args:
        events: held-out observations.
        n_probes: random directions for each.
        draws: whose mean is the estimate, under one key; a Gaussian regression head has its mean without.
        threshold: relative error of the Jacobian that passes.
    """

    events: int = 100
    n_probes: int = 10
    draws: int = 256
    threshold: float = 0.05

    def __post_init__(self) -> None:
        require(min(self.events, self.draws) >= 1, "events and draws >= 1", (self.events, self.draws), "pass more")


def with_oracle(simulator: Simulator, batch: Batch) -> tuple[Batch, str]:
    """The batch, of least-squares problems with the mode in place of the truth; and what the oracle is."""
    if isinstance(simulator, Conjugate):
        return batch, "exact posterior mean"
    assert isinstance(simulator, LeastSquares)
    minimiser = GaussNewton()

    def analyse(element: Batch) -> tuple[jax.Array, jax.Array]:
        shape = element.target.shape
        solve = minimiser(lambda x: simulator.residual(x.reshape(shape), element), element.target.ravel())
        return solve.control.reshape(shape), solve.converged

    modes, converged = jax.jit(jax.vmap(analyse))(batch)
    count = int(converged.sum())
    require(count == len(converged), f"{len(converged)} analyses that converge", count, "judge fewer events, or another simulator")
    return batch._replace(target=modes), "mode by Gauss–Newton"


def estimate_of(posterior: Amortized, draws: int, key: jax.Array) -> tuple[Estimate, str]:
    """One observation, its element and the scales ↦ the posterior mean, and how it is found."""
    if isinstance(posterior.head, RegressionHead):
        return (lambda element: posterior(element, key)), "mean of the Gaussian"
    return (lambda element: posterior.sample(element, key, draws).mean(axis=-len(posterior.state_shape) - 1)), f"mean of {draws} draws"


def calibration(experiment: Experiment, posterior: Amortized, options: Options) -> GateResult:
    """Adjoint calibration of a posterior in standard deviations of observations and states, or the reason why there is none."""
    simulator: Any = experiment.simulator
    if not isinstance(simulator, (Conjugate, LeastSquares)):
        return skipped("adjoint_calibration", f"{simulator.kind} has neither an exact posterior nor a least-squares cost to compare with")
    if not isinstance(posterior.head, Head):
        return skipped("adjoint_calibration", f"a {posterior.head.kind} head has no posterior mean")
    batch = held_out(simulator, experiment.gates, options.events)
    scale = lambda a: jnp.maximum(a.std(axis=0), 1e-6 * a.std())  # noqa: E731
    observed, state = scale(batch.input), scale(batch.target)
    batch, oracle_name = with_oracle(simulator, batch)
    estimate, name = estimate_of(posterior, options.draws, gates_key(experiment.gates, 10))
    exact = exact_estimate(simulator)

    def fast(y: jax.Array, element: Batch) -> jax.Array:
        return estimate(element._replace(input=y * observed, target=None)) / state

    def oracle(y: jax.Array, element: Batch) -> jax.Array:
        return exact(element._replace(input=y * observed)) / state

    key = gates_key(experiment.gates, 11)
    result = adjoint_calibration(
        fast, oracle, batch.input / observed, key=key, threshold=options.threshold, n_probes=options.n_probes, args=(batch,)
    )
    return result._replace(summary=f"{name} against the {oracle_name}: {result.summary}")


def main(arguments: list[str]) -> int:
    """Judge and write; returns the exit code."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    run_dir = Path(arguments[0])
    trained = load_run(run_dir)
    options = parse(Options, Options(), arguments[1:], "python -m eval.adjoint RUN_DIR")
    result = calibration(trained.experiment, trained.posterior, options)
    write_atomically(run_dir / RESULT, json.dumps(to_json(result), indent=1, allow_nan=False))
    word = "skipped" if "skipped" in result.details else {True: "passed", False: "FAILED", None: "inconclusive"}[result.passed]
    print(f"{word}: {result.summary.removeprefix('skipped: ')}")
    return 0 if result.passed or word == "skipped" else 1


if __name__ == "__main__":
    run(main)
