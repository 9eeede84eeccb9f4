"""Adjoint calibration of a run:  python -m eval.adjoint RUN_DIR [--events 100] [--n-probes 10] [--draws 256] [--threshold 0.05]

Does the posterior mean move with the observation as the oracle's does? On held-out observations ∂x̂/∂y is compared with that of the exact
posterior mean (`Conjugate` simulators), which decides. Elsewhere the oracle is itself an estimate, and the comparison is reported without a
verdict: with the mean of the posterior's own draws under importance weights (heads and simulators with densities), or with the mode that
Gauss–Newton finds for the window (`LeastSquares` simulators). Without any of them there is no oracle: skipped.

Prints the verdict and writes adjoint.json into the run directory. The report has the same on fewer observations.
Of a learned solver, [--windows 16] instead: the adjoints that may differentiate its descent, beside the exact one.
Exit codes: 0 passed, skipped or without verdict, 1 failed or inconclusive, 2 a foreseeable error (one line).
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

from eval.adjoints import show_adjoints
from eval.compare import density_by_ode, importance
from eval.events import gates_key, held_out
from train.cli import parse, run, usage
from train.config import Experiment, load_experiment, load_run
from vardax_flax.assimilation import GaussNewton
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Conjugate, DensityHead, Head, LeastSquares, LocatingEncoder, LogJoint
from vardax_flax.fourdvarnet import FourDVarNetConfig
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
WEIGHABLE = 8  # components, of which so many draws find a derivative to some per cent: the error grows with √(components / draws)
FEWEST = 10  # observations with an oracle
Estimate = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare how the posterior mean moves with the observation.

    Args:
        events: held-out observations.
        n_probes: random directions for each.
        draws: whose mean is the estimate, unless a Gaussian of the state itself has it without.
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
        asked: of how many observations these are what is left.
        data: what belongs to each of them.
        exact: nothing in it is estimated.
    """

    name: str
    estimate: Estimate
    batch: Batch
    asked: int
    data: tuple[Any, ...] = ()
    exact: bool = False


def exact_mean(simulator: Conjugate, batch: Batch) -> Oracle:
    """The mean in closed form."""
    return Oracle("exact posterior mean", exact_estimate(simulator), batch, len(batch.input), exact=True)


def weighted_mean(simulator: LogJoint, posterior: Amortized, batch: Batch, key: jax.Array) -> Oracle | str:
    """E[x | y] = Σ wᵢ xᵢ / Σ wᵢ with wᵢ ∝ p(xᵢ) p(y | xᵢ) / q(xᵢ | y₀) over draws that stay where they are while y moves away from y₀.

    So ∂E[x | y]/∂y = Cov(x, ∂ log p(y | x)/∂y) under the weights, with the noise of so many draws. Observations whose weights have too
    heavy a tail are left out. Returns the reason where too few are left, and where the likelihood has an edge: it moves with y, and draws
    that stay do not see it.
    """
    n = max(1000, NUMBERS // batch.target[0].size)
    asked = batch._replace(target=None)
    draws = posterior.sample(asked, key, n)

    def likelihood(element: Batch, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: simulator.log_likelihood(x, element))(x)

    nowhere = jax.jit(lambda batch, draws: jnp.isneginf(jax.vmap(likelihood)(batch, draws)))
    # a trajectory that explodes has no likelihood whatever is seen; beyond an edge it is the observation that decides
    others = asked._replace(input=jnp.roll(asked.input, 1, axis=0))
    if bool((nowhere(asked, draws) != nowhere(others, draws)).any()):
        return "the likelihood has an edge, which moves with the observation: weights of draws that stay do not see it"
    weights, k_hat = importance(simulator, asked, draws, posterior.log_prob(draws, asked))
    kept = np.flatnonzero(k_hat < k_limit(n))
    if len(kept) < min(FEWEST, len(draws)):
        return f"importance weights are usable for {len(kept)} of {len(draws)} observations, {FEWEST} needed"

    def estimate(element: Batch, x: jax.Array, weight: jax.Array) -> jax.Array:
        seen = likelihood(element, x)
        seen = jnp.where(jnp.isneginf(seen), 0, seen)  # their weight is 0
        weight = weight * jnp.exp(seen - jax.lax.stop_gradient(seen))
        return jnp.tensordot(weight / weight.sum(), x, 1)

    batch, draws, weights = jax.tree.map(lambda leaf: leaf[kept], (asked, draws, jnp.asarray(weights, draws.dtype)))
    return Oracle(f"mean of {n} draws by importance weights", estimate, batch, len(k_hat), (draws, weights))


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
    return Oracle("mode by Gauss–Newton", exact_estimate(simulator), batch, len(converged))


def make_oracle(simulator: Any, posterior: Amortized, batch: Batch, key: jax.Array) -> Oracle | str:
    """The best that simulator and posterior allow, or the reason why there is none."""
    if isinstance(simulator, Conjugate):
        return exact_mean(simulator, batch)
    found: Oracle | str = f"{simulator.kind} has no posterior to compare with: not exact, not by weights, not by a least-squares cost"
    weighable = isinstance(posterior.head, DensityHead) and not density_by_ode(posterior) and batch.target[0].size <= WEIGHABLE
    if isinstance(simulator, LogJoint) and weighable:
        found = weighted_mean(simulator, posterior, batch, key)
    return mode(simulator, batch) if isinstance(found, str) and isinstance(simulator, LeastSquares) else found


def estimate_of(posterior: Amortized, draws: int) -> tuple[Estimate, str]:
    """One element and a key ↦ the posterior mean, and how it is found."""
    encoder = getattr(posterior, "encoder", None)
    affine = encoder.affine if isinstance(encoder, LocatingEncoder) else not isinstance(posterior, EnsemblePosterior)
    if isinstance(posterior.head, RegressionHead) and affine:  # else the most probable state, which is quicker to have, is no mean
        return (lambda element, key: posterior(element, key)), "mean of the Gaussian"
    axis = -len(posterior.state_shape) - 1
    return (lambda element, key: posterior.sample(element, key, draws).mean(axis=axis)), f"mean of {draws} draws"


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
    estimate, name = estimate_of(posterior, options.draws)

    def fast(y: jax.Array, element: Batch, key: jax.Array, *_: Any) -> jax.Array:
        return estimate(element._replace(input=y * observed, target=None), key) / state

    def exact(y: jax.Array, element: Batch, key: jax.Array, *data: Any) -> jax.Array:
        return oracle.estimate(element._replace(input=y * observed), *data) / state

    # a key for each, so that the noise of draws is not the same in all and the interval knows it
    keys = jax.random.split(gates_key(experiment.gates, 12), len(oracle.batch.input))
    result = adjoint_calibration(
        fast, exact, oracle.batch.input / observed, key=gates_key(experiment.gates, 13), threshold=options.threshold,
        n_probes=options.n_probes, args=(oracle.batch, keys, *oracle.data), operator_norm=options.operator_norm,
    )  # fmt: skip
    return _told(result, oracle, name, options.threshold)


def _told(result: GateResult, oracle: Oracle, name: str, threshold: float) -> GateResult:
    """The result with what was compared, and without a verdict if the oracle is an estimate."""
    each, text = result.details["per_event"], f"{name} against the {oracle.name}"
    share = f"median event {np.median(each):.3f}, within the bound in {np.mean(each <= threshold):.0%} of events"
    if len(each) < oracle.asked:
        share += f" ({oracle.asked - len(each)} more could not be asked)"
    if oracle.exact or not np.isfinite(result.statistic):
        return result._replace(summary=f"{text}: {result.summary}; {share}")
    details = {**result.details, "inconclusive": False, "do": "judge the run on a simulator whose posterior mean is known exactly"}
    summary = f"{text}, which is an estimate, so without a verdict: {details['worst']}, cosine {details['cosine']:.4f}; {share}"
    return result._replace(passed=None, bound=None, summary=summary, details=details)


def main(arguments: list[str]) -> int:
    """Judge and write; returns the exit code."""
    if (code := usage(__doc__, arguments)) is not None:
        return code
    run_dir = Path(arguments[0])
    if isinstance(load_experiment(run_dir).posterior, FourDVarNetConfig):
        return show_adjoints(run_dir, arguments[1:])
    trained = load_run(run_dir)
    options = parse(Options, Options(), arguments[1:], "python -m eval.adjoint RUN_DIR")
    result = calibration(trained.experiment, trained.posterior, options)
    write_atomically(run_dir / RESULT, json.dumps(to_json(result), indent=1, allow_nan=False))
    print(f"{word(result)}: {result.summary.removeprefix('skipped: ')}")
    return 1 if word(result) in ("FAILED", "inconclusive") else 0


if __name__ == "__main__":
    run(main)
