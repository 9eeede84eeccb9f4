"""Adjoint calibration of a run:  python -m eval.adjoint RUN_DIR [--events 100] [--n-probes 10] [--draws 256] [--threshold 0.05]

Does the posterior mean move with the observation as the oracle's does? On held-out observations ∂x̂/∂y is compared with that of the exact
posterior mean (`Conjugate` simulators); of the mean of the posterior's own draws under importance weights (heads and simulators with
densities); or of the mode that Gauss–Newton finds for the window (`LeastSquares` simulators), which can clear a posterior and not convict
it, for one that is not Gaussian has its mean elsewhere. Without any of them there is no oracle: skipped.

Prints the verdict and writes adjoint.json into the run directory.
Exit codes: 0 passed or skipped, 1 failed or inconclusive, 2 a foreseeable error (one line).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.compare import density_by_ode, importance
from eval.events import gates_key, held_out
from train.cli import parse, run, usage
from train.config import Experiment, load_run
from vardax_flax.assimilation import GaussNewton
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Conjugate, DensityHead, Head, LeastSquares, LocatingEncoder, LogJoint
from vardax_flax.heads import RegressionHead
from vardax_flax.ops.psis import k_limit
from vardax_flax.posteriors import Amortized, EnsemblePosterior
from vardax_flax.posteriors.sobolev import exact_estimate
from vardax_flax.training.rundir import write_atomically
from vardax_flax.validation import GateResult, adjoint_calibration, skipped, to_json
from vardax_flax.validation.result import word

RESULT = "adjoint.json"
NAME = "adjoint calibration"
NUMBERS = 49_152  # draws × dimensions in an observation
FEWEST = 10  # observations with an oracle
OWN_ERROR = 0.025  # relative, of the oracle
EDGE = 1e-3  # share of draws beyond it that tells an edge of the likelihood from a state whose trajectory explodes
Estimate = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare how the posterior mean moves with the observation.

    Args:
        events: held-out observations.
        n_probes: random directions for each.
        draws: whose mean is the estimate, under one key; a Gaussian of states has its mean without.
        threshold: relative error of the Jacobian that passes.
        operator_norm: find that of the error too, which takes long to compile.
    """

    events: int = 100
    n_probes: int = 10
    draws: int = 256
    threshold: float = 0.05
    operator_norm: bool = True

    def __post_init__(self) -> None:
        require(min(self.events, self.draws) >= 1, "events and draws >= 1", (self.events, self.draws), "pass more")


class Oracle(NamedTuple):
    """Whose derivative is taken for the right one.

    Args:
        name: of the estimate.
        estimate: one element, and its part of `data` ↦ state.
        batch: the observations it can be asked about.
        data: what belongs to each of them.
        of_mean: it is an estimate of the mean. One of the mode can clear a posterior, but not convict it: a mean may lie elsewhere.
    """

    name: str
    estimate: Estimate
    batch: Batch
    data: tuple[Any, ...] = ()
    of_mean: bool = True


def exact_mean(simulator: Conjugate, batch: Batch) -> Oracle:
    """The mean in closed form."""
    return Oracle("exact posterior mean", exact_estimate(simulator), batch)


def weighted_mean(simulator: LogJoint, posterior: Amortized, batch: Batch, key: jax.Array) -> Oracle | str:
    """E[x | y] = Σ wᵢ xᵢ / Σ wᵢ with wᵢ ∝ p(xᵢ) p(y | xᵢ) / q(xᵢ | y₀) over draws that stay where they are while y moves away from y₀.

    So ∂E[x | y]/∂y = Cov(x, ∂ log p(y | x)/∂y) under the weights, off by some √(d / n) for d components and n draws that count.
    Observations are left out where that is too much, or the weights have too heavy a tail. Returns the reason where too few are left, and
    where the likelihood has an edge: it moves with y, and draws that stay do not see it.
    """
    size = batch.target[0].size
    n, least = max(1000, NUMBERS // size), size / OWN_ERROR**2
    if n < least:
        return f"a state of {size} numbers takes {least:.0f} draws an observation"
    asked = batch._replace(target=None)
    draws = posterior.sample(asked, key, n)
    likelihood = jax.vmap(lambda element, x: jax.vmap(lambda x: simulator.log_likelihood(x, element))(x))
    beyond = float(jnp.isneginf(jax.jit(likelihood)(asked, draws)).mean())
    if beyond > EDGE:
        return f"the likelihood is 0 at {beyond:.1%} of the draws, so it has an edge, which draws that stay do not see moving"
    weights, k_hat = importance(simulator, asked, draws, posterior.log_prob(draws, asked))
    effective = np.square(weights.sum(axis=1)) / np.square(weights).sum(axis=1)
    kept = np.flatnonzero((k_hat < k_limit(n)) & (effective > least))
    if len(kept) < min(FEWEST, len(draws)):
        return f"importance weights of {n} draws find the mean in {len(kept)} of {len(draws)} observations, {FEWEST} needed"

    def estimate(element: Batch, x: jax.Array, weight: jax.Array) -> jax.Array:
        seen = jax.vmap(lambda x: simulator.log_likelihood(x, element))(x)
        seen = jnp.where(jnp.isneginf(seen), 0, seen)  # their weight is 0
        weight = weight * jnp.exp(seen - jax.lax.stop_gradient(seen))
        return jnp.tensordot(weight / weight.sum(), x, 1)

    batch, draws, weights = jax.tree.map(lambda leaf: leaf[kept], (asked, draws, jnp.asarray(weights, draws.dtype)))
    return Oracle(f"mean of {n} draws by importance weights", estimate, batch, (draws, weights))


def mode(simulator: LeastSquares, batch: Batch) -> Oracle | str:
    """The mode that Gauss–Newton finds from the truth, differentiated by the implicit function theorem."""
    minimiser = GaussNewton()

    def analyse(element: Batch) -> tuple[jax.Array, jax.Array]:
        shape = element.target.shape
        solve = minimiser(lambda x: simulator.residual(x.reshape(shape), element), element.target.ravel())
        return solve.control.reshape(shape), solve.converged

    modes, converged = jax.jit(jax.vmap(analyse))(batch)
    kept = np.flatnonzero(converged)
    if len(kept) < min(FEWEST, len(converged)):
        return f"Gauss–Newton converges in {len(kept)} of {len(converged)} observations, {FEWEST} needed"
    batch = jax.tree.map(lambda leaf: leaf[kept], batch._replace(target=modes))
    return Oracle("mode by Gauss–Newton", exact_estimate(simulator), batch, of_mean=False)


def make_oracle(simulator: Any, posterior: Amortized, batch: Batch, key: jax.Array) -> Oracle | str:
    """The best that simulator and posterior allow, or the reason why there is none."""
    if isinstance(simulator, Conjugate):
        return exact_mean(simulator, batch)
    found: Oracle | str = f"{simulator.kind} has no posterior to compare with: neither exact, nor densities, nor a least-squares cost"
    if isinstance(simulator, LogJoint) and isinstance(posterior.head, DensityHead) and not density_by_ode(posterior):
        found = weighted_mean(simulator, posterior, batch, key)
    return mode(simulator, batch) if isinstance(found, str) and isinstance(simulator, LeastSquares) else found


def estimate_of(posterior: Amortized, draws: int, key: jax.Array) -> tuple[Estimate, str]:
    """One element ↦ the posterior mean, and how it is found."""
    # elsewhere the most probable state is no mean: of a mixture, and where a head models states through a map
    mapped = isinstance(posterior, EnsemblePosterior) or isinstance(getattr(posterior, "encoder", None), LocatingEncoder)
    if isinstance(posterior.head, RegressionHead) and not mapped:
        return (lambda element: posterior(element, key)), "mean of the Gaussian"
    return (lambda element: posterior.sample(element, key, draws).mean(axis=-len(posterior.state_shape) - 1)), f"mean of {draws} draws"


def calibration(experiment: Experiment, posterior: Amortized, options: Options) -> GateResult:
    """Adjoint calibration of a posterior in standard deviations of observations and states, or the reason why there is none."""
    simulator: Any = experiment.simulator
    if not isinstance(posterior.head, Head):
        return skipped(NAME, f"a {posterior.head.kind} head has no posterior mean")
    batch = held_out(simulator, experiment.gates, options.events)
    scale = lambda a: jnp.maximum(a.std(axis=0), 1e-6 * a.std())  # noqa: E731
    observed, state = scale(batch.input), scale(batch.target)
    oracle = make_oracle(simulator, posterior, batch, gates_key(experiment.gates, 14))
    if isinstance(oracle, str):
        return skipped(NAME, oracle)
    estimate, name = estimate_of(posterior, options.draws, gates_key(experiment.gates, 12))

    def fast(y: jax.Array, element: Batch, *_: Any) -> jax.Array:
        return estimate(element._replace(input=y * observed, target=None)) / state

    def exact(y: jax.Array, element: Batch, *data: Any) -> jax.Array:
        return oracle.estimate(element._replace(input=y * observed), *data) / state

    result = adjoint_calibration(
        fast, exact, oracle.batch.input / observed, key=gates_key(experiment.gates, 13), threshold=options.threshold,
        n_probes=options.n_probes, args=(oracle.batch, *oracle.data), operator_norm=options.operator_norm,
    )  # fmt: skip
    each = result.details["per_event"]
    text = f"{name} against the {oracle.name}: {result.summary}"
    text += f"; median event {np.median(each):.3f}, within the bound in {np.mean(each <= options.threshold):.0%} of events"
    if result.passed is False and not oracle.of_mean:
        text += "; no verdict, for a posterior that is not Gaussian has its mean elsewhere"
        result = result._replace(passed=None, details=result.details | {"inconclusive": True})
    return result._replace(summary=text)


def main(arguments: list[str]) -> int:
    """Judge and write; returns the exit code."""
    if (code := usage(__doc__, arguments)) is not None:
        return code
    run_dir = Path(arguments[0])
    trained = load_run(run_dir)
    options = parse(Options, Options(), arguments[1:], "python -m eval.adjoint RUN_DIR")
    result = calibration(trained.experiment, trained.posterior, options)
    write_atomically(run_dir / RESULT, json.dumps(to_json(result), indent=1, allow_nan=False))
    print(f"{word(result)}: {result.summary.removeprefix('skipped: ')}")
    return 0 if result.passed or word(result) == "skipped" else 1


if __name__ == "__main__":
    run(main)
