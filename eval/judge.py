"""All gates that apply to a run, each with its verdict; what does not apply is listed with the reason."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.adjoint import NAME as ADJOINT
from eval.adjoint import Options, calibration
from eval.compare import compare, density_by_ode
from eval.events import gates_key, held_out
from eval.reference import Reference
from eval.skill import baselines, skill, skill_table
from eval.steps import PHYSICS, physics_forward
from train.config import Experiment
from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Conjugate, DensityHead, Head, LogJoint
from vardax_flax.ops import gaussian
from vardax_flax.posteriors import Amortized
from vardax_flax.validation import (
    GateResult,
    c2st,
    coverage_from_ranks,
    ensemble_scores,
    posterior_agreement,
    rank_pass,
    sbc_from_ranks,
    skipped,
)

AGREEMENT_EVENTS = 100
AGREEMENT_DRAWS = 4000
KL_BOUND = 0.01  # nats
COVERAGE_DRAWS, DEAR_DRAWS = 999, 99  # the fewer where each has its density by an ODE; any number covers exactly
EXACT = ("agreement with the exact posterior", "KL from the exact posterior")
AGAINST_REFERENCE = (
    "agreement with the reference posterior",
    "ensemble scores on the reference observations",
    "C2ST against the reference",
)

ORACLE = ("oracle", "skill")
WINDOWS = 100  # held out, on which the oracle and the predictors without skill are asked too
POOL = 1000  # simulations that make the climatology, of large states fewer
POOLED_NUMBERS = 655_360
ADJOINT_EVENTS = 64

Timings = list[dict[str, Any]]


class Judge:
    """Runs gates on one posterior and keeps the time of each.

    Args:
        experiment: what was trained.
        posterior: with its trained weights.
        reference: independent posteriors, or None with the reason in `no_reference`.
        windows: held out, to compare with the oracle on.
    """

    def __init__(
        self, experiment: Experiment, posterior: Amortized, reference: Reference | None, no_reference: str = "", windows: int = WINDOWS
    ) -> None:
        self.experiment, self.posterior, self.reference, self.no_reference = experiment, posterior, reference, no_reference
        self.simulator, self.gates = experiment.simulator, experiment.gates
        self.windows = windows
        self.timings: Timings = []
        self.tables: list[dict[str, Any]] = []
        self.pool = max(100, min(POOL, POOLED_NUMBERS // math.prod(posterior.state_shape)))

    def run(self) -> list[GateResult]:
        """Every gate, in the order of the report."""
        head = self.posterior.head
        if not isinstance(head, Head):
            names = ("sbc", "coverage", *EXACT, *AGAINST_REFERENCE, *ORACLE, ADJOINT)
            return [self.physics(), *(skipped(name, f"a {head.kind} head has no draws") for name in names)]
        ranked = [self.physics(), self.sbc(), self.coverage()]
        return [*ranked, *self.exact(), *self.against_reference(), *self.against_oracle(), self.adjoint()]

    def _timed(self, what: str, function: Callable[[], Any], note: str = "") -> Any:
        began = time.perf_counter()
        result = function()
        self.timings.append({"what": what, "seconds": time.perf_counter() - began, "note": note or None})
        return result

    def physics(self) -> GateResult:
        """The forward model itself."""
        batch = held_out(self.simulator, self.gates, self.pool)
        return self._timed(PHYSICS, lambda: physics_forward(self.simulator, batch))

    def sbc(self) -> GateResult:
        """Simulation-based calibration."""
        gates = self.gates

        def compute() -> GateResult:
            ranked = rank_pass(
                self.posterior, self.simulator, key=gates_key(gates, 1), n_runs=gates.n_runs, n_samples=gates.n_samples
            )
            return sbc_from_ranks(ranked, level=gates.level)

        return self._timed("simulation-based calibration", compute, f"{gates.n_runs} runs × {gates.n_samples} draws, compile included")

    def coverage(self) -> GateResult:
        """Coverage of central intervals and highest-density regions."""
        gates, draws = self.gates, DEAR_DRAWS if density_by_ode(self.posterior) else COVERAGE_DRAWS

        def compute() -> GateResult:
            ranked = rank_pass(
                self.posterior, self.simulator, key=gates_key(gates, 2), n_runs=gates.coverage_runs, n_samples=draws,
                quantities="marginals",
            )  # fmt: skip
            return coverage_from_ranks(ranked, error=gates.level)

        return self._timed("coverage", compute, f"{gates.coverage_runs} runs × {draws} draws, compile included")

    def exact(self) -> list[GateResult]:
        """Agreement with the exact posterior, where the simulator is conjugate."""
        simulator = self.simulator
        if not isinstance(simulator, Conjugate):
            reason = f"the posterior of {simulator.kind} is not known in closed form"
            return [skipped(name, reason) for name in EXACT]
        batch = held_out(simulator, self.gates, AGREEMENT_EVENTS)
        mean, cov = jax.vmap(simulator.posterior)(batch)
        draws = np.asarray(self.posterior.sample(batch, gates_key(self.gates, 3), AGREEMENT_DRAWS))
        agreement = self._timed(EXACT[0], lambda: posterior_agreement(draws, (mean, cov)))._replace(name=EXACT[0])
        if not isinstance(self.posterior.head, DensityHead):
            return [agreement, skipped(EXACT[1], f"a {self.posterior.head.kind} head has no density")]
        key = gates_key(self.gates, 4)
        return [agreement, self._timed(EXACT[1], lambda: kl_from_exact(self.posterior, batch, mean, cov, key))]

    def against_reference(self) -> list[GateResult]:
        """Agreement with independent posteriors, the scores of both, and the two-sample metric."""
        names, reference = AGAINST_REFERENCE, self.reference
        if reference is None:
            return [skipped(name, self.no_reference) for name in names]
        draws = np.asarray(self.posterior.sample(reference.batch, gates_key(self.gates, 5), AGREEMENT_DRAWS))
        agreement = posterior_agreement(draws, (reference.mean, reference.cov))._replace(name=names[0])
        scores = ensemble_scores(draws[:, :1000], reference.truth, key=gates_key(self.gates, 6))._replace(name=names[1])
        if not reference.draws_exact:
            return [agreement, scores, skipped(names[2], "the reference gives moments; its few draws are too few for a classifier")]
        return [agreement, scores, self._timed("C2ST", lambda: two_sample(self.posterior, reference, gates_key(self.gates, 7)))]

    def against_oracle(self) -> list[GateResult]:
        """The oracle on held-out windows, agreement with it, and skill beyond predictors that do not look; tables are left in `tables`."""
        simulator, posterior = self.simulator, self.posterior
        count = min(self.windows, self.gates.coverage_runs)
        both = held_out(simulator, self.gates, count + self.pool)
        batch, others = (jax.tree.map(lambda leaf, rows=rows: leaf[rows], both) for rows in (slice(count), slice(count, None)))
        note = f"{count} windows, compile included"
        compared = self._timed("oracle comparison", lambda: compare(simulator, posterior, batch, gates_key(self.gates, 10)), note)

        def judge_skill() -> GateResult:
            base = baselines(simulator, batch, others, gates_key(self.gates, 11))
            gain = None
            if isinstance(simulator, LogJoint) and isinstance(posterior.head, DensityHead):
                log_prior = jax.jit(jax.vmap(simulator.log_prior))(batch.target, batch._replace(target=None))
                gain = np.asarray(posterior.log_prob(batch.target, batch) - log_prior, np.float64)
            answers = compared.amortized.scored, base, None if compared.oracle is None else compared.oracle.scored, gain
            self.tables += [*compared.tables, skill_table(*answers)]
            return skill(*answers)

        return [*compared.gates, self._timed("skill", judge_skill, f"{count} windows, {self.pool} other simulations")]

    def adjoint(self) -> GateResult:
        """How the mean moves with the observation; judged where the oracle is exact."""
        options = Options(events=ADJOINT_EVENTS, operator_norm=False)
        return self._timed("adjoint calibration", lambda: calibration(self.experiment, self.posterior, options), "compile included")


def kl_from_exact(posterior: Amortized, batch: Batch, mean: jax.Array, cov: jax.Array, key: jax.Array) -> GateResult:
    """KL(p ‖ q) = E_p[log p(x | y) − log q(x | y)] in nats, p the exact posterior, over 1000 draws of p for each observation."""
    chol = jnp.linalg.cholesky(cov)
    noise = jax.random.normal(key, (mean.shape[0], 1000, mean.shape[-1]), mean.dtype)
    x = mean[:, None] + jnp.einsum("eij,enj->eni", chol, noise)
    log_p = gaussian.log_prob(x, mean[:, None], chol[:, None])
    state = posterior.state_shape
    log_q = posterior.log_prob(x.reshape(*x.shape[:2], *state), batch)
    kl = np.asarray((log_p - log_q).mean(axis=1), np.float64)
    value, worst = float(kl.mean()), float(kl.max())
    passed = value < KL_BOUND
    summary = f"KL(exact ‖ q) = {value:.4f} nats on average over {len(kl)} observations, largest {worst:.4f}"
    details = {"kl": kl, "worst": f"{value:.4f} nats", "expected": f"below {KL_BOUND} nats", "do": "train longer or with a wider head"}
    return GateResult("KL from the exact posterior", passed, value, KL_BOUND, None, summary, details)


def two_sample(posterior: Amortized, reference: Reference, key: jax.Array) -> GateResult:
    """Mean classifier two-sample accuracy over the reference observations, beside that of two halves of the reference draws."""
    n = reference.draws.shape[1]
    draws = np.asarray(posterior.sample(reference.batch, key, n))
    scores = [c2st(p, q) for p, q in zip(reference.draws, draws, strict=True)]
    halves = c2st(reference.draws[0, : n // 2], reference.draws[0, n // 2 :])
    value = float(np.mean(scores))
    listed = ", ".join(f"{score:.3f}" for score in scores)
    summary = f"mean {value:.3f} over {len(scores)} observations ({listed}); reference against itself {halves:.3f}; 0.5 is best"
    details = {"c2st": np.array(scores), "reference_halves": halves}
    return GateResult("C2ST against the reference", None, value, None, None, summary, details)
