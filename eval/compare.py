"""The amortized answer beside a classical oracle on the same held-out windows: agreement, scores, cost, and what else it is good for.

The oracle is the exact posterior of a conjugate simulator, or 4D-Var with several starts of a least-squares one. Two more uses of the
amortized answer are measured: as 4D-Var's first guess, and as the proposal of importance sampling where densities are known.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.fourdvar import SimulatorFourDVar, WindowPosterior, window_posterior
from eval.scores import Scored, score
from vardax_flax.assimilation import Solve
from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Conjugate, DensityHead, LeastSquares, LogJoint, Simulator
from vardax_flax.heads import ScoreDiffusionHead
from vardax_flax.ops import gaussian
from vardax_flax.ops.psis import k_limit, psis
from vardax_flax.posteriors import Amortized
from vardax_flax.validation import GateResult, posterior_agreement, skipped
from vardax_flax.validation.importance import log_joint

STARTS = 8  # of 4D-Var, the background among them
REPEATS = 3  # timings of each compiled call
TIMED_DRAWS = 100  # what both are timed for, in each window
NUMBERS = 65_536  # draws × dimensions in a window, at most
CONVERGED = 0.95  # share of windows that 4D-Var has to solve to be an oracle
FEWEST = 10  # windows in which an oracle has to be believed for it to be one
AGREEMENT, WEIGHTED = "agreement with the oracle", "amortized, importance-weighted"


class Answer(NamedTuple):
    """One posterior of the windows.

    Args:
        scored: moments and scores.
        seconds: for 100 draws in every window, all windows in one compiled call; None if not timed.
        k_hat: of the weights of its draws `(events,)`; None without densities.
        sample_size: effective share of its draws `(events,)`.
    """

    scored: Scored
    seconds: float | None = None
    k_hat: np.ndarray | None = None
    sample_size: np.ndarray | None = None


class Oracle(NamedTuple):
    """What the amortized answer is compared with.

    Args:
        name: of the method.
        batch: windows with their true states.
        mean: `(events, dim)`.
        root: R of the covariance R Rᵀ `(events, dim, dim)`.
        run: `key ↦ draws` of all windows, compiled: what is timed.
        found: the minima, if it is 4D-Var.
    """

    name: str
    batch: Batch
    mean: np.ndarray
    root: np.ndarray
    run: Callable[[jax.Array], jax.Array]
    found: WindowPosterior | None = None

    @property
    def sd(self) -> np.ndarray:
        """Standard deviations `(events, dim)`."""
        return np.sqrt(np.square(self.root).sum(axis=-1))


def draws_of(dim: int) -> int:
    """How many draws a window gets: 1000, of large states fewer."""
    return max(16, min(1000, NUMBERS // dim))


def density_by_ode(posterior: Amortized) -> bool:
    """Whether every density costs an ODE, and not one pass of the network: gates cannot then have millions."""
    return isinstance(posterior.head, ScoreDiffusionHead)


def timed(call: Callable[[], Any]) -> float:
    """Median seconds of a call whose code is compiled, to the end of the computation."""
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


# --- oracles, by what the simulator is ---


def exact_oracle(simulator: Conjugate, batch: Batch) -> Oracle:
    """The posterior in closed form."""

    def posterior(element: Batch) -> tuple[jax.Array, jax.Array]:
        mean, cov = simulator.posterior(element)
        return mean, jnp.linalg.cholesky(cov)

    solve = jax.jit(jax.vmap(posterior))
    mean, root = solve(batch)
    run = functools.partial(_gaussian_draws, solve, batch)
    return Oracle("exact posterior", batch, _flat64(mean), np.asarray(root, np.float64), run)


def window_oracle(simulator: LeastSquares, batch: Batch, key: jax.Array, starts: int = STARTS) -> Oracle:
    """4D-Var from several starts, and the inverse Hessian at the lowest minimum."""
    method = SimulatorFourDVar(simulator)
    solve = jax.jit(lambda batch: window_posterior(method, batch, key, starts))
    found = solve(batch)
    run = functools.partial(_gaussian_draws, lambda batch: solve(batch)[:2], batch)
    return Oracle(f"4D-Var, {starts} starts", batch, _flat64(found.mean), np.asarray(found.root, np.float64), run, found)


def make_oracle(simulator: Simulator, batch: Batch, key: jax.Array) -> Oracle | None:
    """The oracle that the simulator allows, on held-out windows; None if it allows none."""
    if isinstance(simulator, Conjugate):
        return exact_oracle(simulator, batch)
    if isinstance(simulator, LeastSquares) and batch.background is not None:
        return window_oracle(simulator, batch, key)
    return None


def _gaussian_draws(solve: Callable[[Batch], tuple[jax.Array, jax.Array]], batch: Batch, key: jax.Array) -> jax.Array:
    mean, root = solve(batch)
    return _draw(mean, root, key, TIMED_DRAWS)


@functools.partial(jax.jit, static_argnames="n")
def _draw(mean: jax.Array, root: jax.Array, key: jax.Array, n: int) -> jax.Array:
    mean = mean.reshape(mean.shape[0], -1)
    noise = jax.random.normal(key, (mean.shape[0], n, mean.shape[1]), mean.dtype)
    return mean[:, None] + jnp.einsum("eij,enj->eni", root, noise)


def _flat64(array: Any) -> np.ndarray:
    array = np.asarray(array, np.float64)
    return array.reshape(array.shape[0], -1)


# --- importance sampling ---


def importance(simulator: LogJoint, batch: Batch, draws: jax.Array, log_q: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed weights `(events, n)` of draws `(events, n, *state)` for the true posterior, and k̂ `(events,)`."""
    joint = jax.jit(jax.vmap(jax.vmap(log_joint(simulator), in_axes=(0, None))))(draws, batch._replace(target=None))
    weights, k_hat = psis(joint - log_q)
    return np.exp(np.asarray(weights, np.float64)), np.asarray(k_hat)


# --- the comparison ---


class Comparison(NamedTuple):
    """Everything a report says about the oracle.

    Args:
        gates: the oracle's own health, and agreement with it.
        tables: of scores, and of first guesses.
        amortized: the amortized answer to the windows.
        oracle: the oracle's; None if the simulator allows none.
    """

    gates: list[GateResult]
    tables: list[dict[str, Any]]
    amortized: Answer
    oracle: Answer | None


def compare(simulator: Simulator, posterior: Amortized, batch: Batch, key: jax.Array) -> Comparison:
    """The amortized posterior beside the oracle that its simulator allows.

    Args:
        simulator: of the joint distribution.
        posterior: with its trained weights, of a head that draws.
        batch: held-out windows with true states, one leading axis.
        key: random key.
    """
    keys = jax.random.split(key, 3)
    draws, amortized, reweighted = _amortized(simulator, posterior, batch, keys[0])
    answers = {"amortized": amortized} | ({} if reweighted is None else {WEIGHTED: reweighted})
    oracle = make_oracle(simulator, batch, keys[1])
    if oracle is None:
        reason = f"{simulator.kind} is neither conjugate nor least squares around a background"
        table = score_table("On {} held-out windows, without an oracle", answers, None)
        return Comparison([skipped("oracle", reason)], [table], amortized, None)
    theirs = _oracle_answer(simulator, oracle, keys[2])
    tables = [score_table(f"Beside the oracle ({oracle.name}) on {{}} held-out windows", answers | {"oracle": theirs}, oracle)]
    gates = [oracle_health(oracle, theirs)]
    if oracle.found is not None:
        tables.append(first_guess_table(simulator, oracle, amortized))
        gates.append(agreement_with(oracle, theirs, draws))  # with a closed form a gate of its own judges agreement
    return Comparison(gates, tables, amortized, theirs)


def agreement_with(oracle: Oracle, theirs: Answer, draws: np.ndarray) -> GateResult:
    """Agreement of the marginals in the windows whose oracle can be believed.

    A Gaussian at the mode is no oracle where the posterior is bent. Importance weights of its draws refute it where they are too heavy to
    be used; where they are not it may still be thin across the bend, so that its marginals can be compared with and its shape cannot.
    """
    believed = np.ones(len(draws), bool) if theirs.k_hat is None else theirs.k_hat < k_limit(draws_of(draws.shape[-1]))
    where = f"importance weights bear the oracle out in {believed.sum()} of {len(draws)} windows"
    if believed.sum() < FEWEST:
        return skipped(AGREEMENT, f"{where}; {FEWEST} are needed")
    marginals = np.moveaxis(draws[believed], -1, 1).reshape(-1, draws.shape[1], 1)  # each component an event of its own
    result = posterior_agreement(marginals, (oracle.mean[believed].reshape(-1, 1), np.square(oracle.sd[believed]).reshape(-1, 1, 1)))
    return result._replace(name=AGREEMENT, summary=f"{result.summary}; {where}")


def _amortized(simulator: Any, posterior: Amortized, batch: Batch, key: jax.Array) -> tuple[np.ndarray, Answer, Answer | None]:
    """Its draws, its answer, and its answer after importance sampling where densities are known."""
    truth = _flat64(batch.target)
    n = draws_of(truth.shape[1])
    asked = batch._replace(target=None)
    draws = posterior.sample(asked, key, n)
    flat = np.asarray(draws, np.float64).reshape(*draws.shape[:2], -1)
    seconds = timed(lambda: posterior.sample(asked, key, TIMED_DRAWS))
    scored = score(flat, truth)
    if not (isinstance(posterior.head, DensityHead) and isinstance(simulator, LogJoint) and n >= 25):
        return flat, Answer(scored, seconds), None
    weights, k_hat = importance(simulator, batch, draws, posterior.log_prob(draws, asked))
    share = 1 / np.square(weights).sum(axis=1) / n
    return flat, Answer(scored, seconds, k_hat, share), Answer(score(flat, truth, weights))


def _oracle_answer(simulator: Any, oracle: Oracle, key: jax.Array) -> Answer:
    truth = _flat64(oracle.batch.target)
    n = draws_of(truth.shape[1])
    mean, root = jnp.asarray(oracle.mean, float), jnp.asarray(oracle.root, float)
    flat = _draw(mean, root, key, n)
    seconds = timed(functools.partial(oracle.run, key))
    scored = score(np.asarray(flat), truth)._replace(mean=oracle.mean, sd=oracle.sd)
    if not (isinstance(simulator, LogJoint) and n >= 25):
        return Answer(scored, seconds)
    draws = flat.reshape(*flat.shape[:2], *oracle.batch.target.shape[1:])
    lower = jnp.asarray(np.linalg.cholesky(oracle.root @ np.swapaxes(oracle.root, 1, 2)), mean.dtype)
    weights, k_hat = importance(simulator, oracle.batch, draws, gaussian.log_prob(flat, mean[:, None], lower[:, None]))
    return Answer(scored, seconds, k_hat, 1 / np.square(weights).sum(axis=1) / n)


def score_table(title: str, answers: dict[str, Answer], oracle: Oracle | None) -> dict[str, Any]:
    """Scores, distance to the oracle, importance quality and cost, one column for each answer."""
    events, dim = answers["amortized"].scored.truth.shape
    limit = k_limit(draws_of(dim))
    rows: list[list[Any]] = []

    def row(name: str, value: Callable[[Answer], Any]) -> None:
        cells = [value(answer) for answer in answers.values()]
        if any(cell is not None for cell in cells):
            rows.append([name, *(None if cell is None else float(cell) for cell in cells)])

    row("RMSE of the mean", lambda a: a.scored.rmse())
    row("CRPS (fair)", lambda a: a.scored.mean_crps())
    row("spread ÷ skill", lambda a: a.scored.spread_skill)
    if oracle is not None:
        row("|mean − oracle's| ÷ oracle's sd, median", lambda a: np.median(_distance(a, oracle)))
        row("the same, 90 % quantile", lambda a: np.quantile(_distance(a, oracle), 0.9))
        row("sd ÷ oracle's sd, median", lambda a: np.median(a.scored.sd / oracle.sd))
    row("k̂ of its draws as a proposal, median", lambda a: None if a.k_hat is None else np.median(a.k_hat))
    row(f"share of windows with k̂ < {limit:.2f}", lambda a: None if a.k_hat is None else np.mean(a.k_hat < limit))
    row("effective share of the draws, median", lambda a: None if a.sample_size is None else np.median(a.sample_size))
    row("milliseconds a window", lambda a: None if a.seconds is None else 1000 * a.seconds / events)
    if oracle is not None:
        theirs = answers["oracle"].seconds or math.nan
        row("amortization ratio: oracle's time ÷ its own", lambda a: None if a.seconds is None else theirs / a.seconds)
    note = f"Times are of {TIMED_DRAWS} draws a window, {events} windows in one compiled call, median of {REPEATS} calls."
    if oracle is not None and oracle.found is not None:
        note += f" {_ended(oracle.found)}"
    return {"title": title.format(events), "columns": ["score", *answers], "rows": rows, "note": note}


def _distance(answer: Answer, oracle: Oracle) -> np.ndarray:
    return np.abs(answer.scored.mean - oracle.mean) / oracle.sd


def _ended(found: WindowPosterior) -> str:
    converged, indefinite = int(found.solve.converged.sum()), int(found.indefinite.sum())
    text = f"4D-Var converged in {converged} of {len(found.indefinite)} windows"
    return text + (f"; the Hessian was indefinite in {indefinite}, where its Gauss–Newton part was taken." if indefinite else ".")


def first_guess_table(simulator: Any, oracle: Oracle, amortized: Answer) -> dict[str, Any]:
    """4D-Var started at the background and at the amortized mean: iterations, time, and how often the lowest minimum was found."""
    assert oracle.found is not None
    method = SimulatorFourDVar(simulator)
    background = jnp.asarray(oracle.batch.background)
    guess = jnp.asarray(amortized.scored.mean.reshape(background.shape), background.dtype)
    solves: list[Solve] = [method.solve_from(oracle.batch, start) for start in (background, guess)]
    seconds = [timed(functools.partial(method.solve_from, oracle.batch, start)) for start in (background, guess)]
    lowest = np.min([np.asarray(oracle.found.solve.cost), *(np.asarray(solve.cost) for solve in solves)], axis=0)
    events = len(lowest)
    found = [float(np.mean(np.asarray(solve.cost) <= lowest + 0.01)) for solve in solves]
    iterations = [float(np.mean(np.asarray(solve.iterations))) for solve in solves]
    rows = [
        ["iterations, mean", *iterations, iterations[0] - iterations[1]],
        ["iterations, largest", *(float(np.max(np.asarray(solve.iterations))) for solve in solves), None],
        ["milliseconds a window", *(1000 * s / events for s in seconds), 1000 * (seconds[0] - seconds[1]) / events],
        ["windows that converged", *(float(solve.converged.mean()) for solve in solves), None],
        ["windows in the lowest minimum found", *found, None],
    ]
    note = "The first guess itself costs what the table above says of the amortized answer; all windows are solved in one compiled call."
    columns = ["single-start 4D-Var", "from the background", "from the amortized mean", "saved"]
    return {"title": "The amortized mean as 4D-Var's first guess", "columns": columns, "rows": rows, "note": note}


def oracle_health(oracle: Oracle, theirs: Answer) -> GateResult:
    """Can the oracle itself be believed: did its minimisations converge? Beside it, how well importance weights bear it out."""
    share = None if theirs.k_hat is None else float(np.mean(theirs.k_hat < k_limit(draws_of(theirs.scored.truth.shape[1]))))
    weighed = "" if share is None else f"; importance weights of its draws are usable in {share:.0%} of windows"
    if oracle.found is None:
        return GateResult("oracle", True, 1.0, None, None, f"{oracle.name}: a closed form{weighed}", {})
    converged = float(oracle.found.solve.converged.mean())
    details = {"expected": f"{CONVERGED:.0%} of windows converged", "worst": f"{converged:.1%}", "do": "give 4D-Var more iterations"}
    summary = f"{oracle.name}: converged in {converged:.1%} of windows{weighed}"
    return GateResult("oracle", converged >= CONVERGED, converged, CONVERGED, None, summary, details)
