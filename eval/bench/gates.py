"""Judge the gates:  python -m eval.bench gates [--repetitions 400]

How often each gate rejects an exact posterior (its size), and posteriors with planted defects (its power), over so many independent
repetitions of a judgement at the budget below. Prints the table in Markdown, and which gate catches what.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import stats

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import LogJoint, Simulator
from vardax_flax.validation import (
    RankPass,
    adjoint_calibration,
    chi2_uniform,
    ecdf_band,
    gamma_statistic,
    posterior_agreement,
    rank_counts,
    rank_grid,
    rank_pass,
)
from vardax_flax.validation.coverage import LEVELS, coverage_curves
from vardax_flax.validation.importance import tail_shapes
from vardax_flax.validation.sbc import GAMMA_SHARE

RUNS, DRAWS = 500, 99  # of SBC, coverage and TARP
EVENTS, MOMENT_DRAWS = 50, 100  # of agreement, and of adjoint calibration with 10 probes
TAIL_EVENTS, TAIL_DRAWS = 20, 200  # of importance quality
LEVEL, POWER = 0.05, 0.95
GATES = ("SBC", "coverage", "TARP", "agreement", "equality", "adjoint", "importance")

DESIGN, NOISE = np.array([[1.0, 0.8, 0.3], [0.2, 0.9, -0.8]]), 0.4  # x ~ N(0, I), y = A x + 0.4 ε
COVARIANCE = np.linalg.inv(np.eye(3) + DESIGN.T @ DESIGN / NOISE**2)
GAIN = COVARIANCE @ DESIGN.T / NOISE**2
SD = np.sqrt(np.diag(COVARIANCE))
MODE = 3.0 * SD  # distance of either mode from the middle
DEGREES = 3


class Law(nnx.Module):
    """x = G y + b + s a + L e, with e normal or of Student's t, and s = ±1 at random or 1."""

    def __init__(
        self, gain: np.ndarray = GAIN, covariance: np.ndarray = COVARIANCE, shift: np.ndarray | float = 0.0,
        mode: np.ndarray | float = 0.0, *, both: bool = False, student: bool = False,
    ) -> None:  # fmt: skip
        self.both, self.student = both, student
        root = np.linalg.cholesky(covariance)
        vectors = np.broadcast_to(shift, 3), np.broadcast_to(mode, 3)
        self.gain, self.root, self.inverse, self.shift, self.mode = (
            nnx.Param(jnp.asarray(a, jnp.float32)) for a in (gain, root, np.linalg.inv(root), *vectors)
        )

    def sample(self, batch: Batch, key: jax.Array, n: int) -> jax.Array:
        """n draws `(*batch, n, 3)`."""
        middle = (batch.input @ self.gain[...].T + self.shift[...])[..., None, :]
        keys = jax.random.split(key, 3)
        shape = (*middle.shape[:-2], n)
        noise = jax.random.normal(keys[0], (*shape, 3))
        if self.student:
            noise *= jnp.sqrt(DEGREES / jnp.square(jax.random.normal(keys[1], (*shape, DEGREES))).sum(axis=-1, keepdims=True))
        side = jax.random.rademacher(keys[2], (*shape, 1), noise.dtype) if self.both else 1.0
        return middle + side * self.mode[...] + noise @ self.root[...].T

    def log_prob(self, x: jax.Array, batch: Batch) -> jax.Array:
        """log q up to a constant; broadcasts."""
        rest = x - batch.input @ self.gain[...].T - self.shift[...]
        sides = (1, -1) if self.both else (1,)
        square = [jnp.square((rest - side * self.mode[...]) @ self.inverse[...].T).sum(axis=-1) for side in sides]
        log_parts = [-0.5 * (DEGREES + 3) * jnp.log1p(s / DEGREES) if self.student else -0.5 * s for s in square]
        return jax.nn.logsumexp(jnp.stack(log_parts), axis=0)

    def moments(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance for each row of y."""
        gain, root, shift, mode = (np.asarray(p[...], np.float64) for p in (self.gain, self.root, self.shift, self.mode))
        cov = root @ root.T * (DEGREES / (DEGREES - 2) if self.student else 1.0) + (np.outer(mode, mode) if self.both else 0.0)
        return y @ gain.T + shift + (0.0 if self.both else mode), np.broadcast_to(cov, (len(y), 3, 3))


class World(Simulator):
    """y ~ N(0, A Aᵀ + 0.16 I), x | y by a law: the posterior is exact by construction."""

    kind = "world"

    def __init__(self, law: Law) -> None:
        self.law = law

    def sample(self, key: jax.Array) -> Batch:
        y_key, x_key = jax.random.split(key)
        y = observations(y_key, ())
        element = Batch(y, jnp.ones_like(y))
        return element._replace(target=self.law.sample(element, x_key, 1)[0])


class LinearWorld(World, LogJoint):
    """The same from its other end: x ~ N(0, I), y | x ~ N(A x, 0.16 I)."""

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return -0.5 * jnp.square(x).sum(axis=-1)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        return -0.5 * jnp.square(element.input - x @ jnp.asarray(DESIGN.T, x.dtype)).sum(axis=-1) / NOISE**2


def observations(key: jax.Array, lead: tuple[int, ...]) -> jax.Array:
    """y `(*lead, 2)`."""
    root = jnp.asarray(np.linalg.cholesky(DESIGN @ DESIGN.T + NOISE**2 * np.eye(2)), jnp.float32)
    return jax.random.normal(key, (*lead, 2)) @ root.T


class Case(NamedTuple):
    """A posterior to judge, and the law of the world it is judged in; both Gaussian or not."""

    world: Law
    posterior: Law
    exact: bool = False
    gaussian: bool = True


def cases() -> dict[str, Case]:
    """Exact posteriors first, then one with each defect."""
    alone, inside = GAIN.copy(), COVARIANCE.copy()
    alone[0], inside[0], inside[:, 0], inside[0, 0] = 0.0, 0.0, 0.0, 1.0
    linear, heavy, double = Law(), Law(student=True), Law(mode=MODE, both=True)
    defects = {
        "sd × 0.8": Law(covariance=0.8**2 * COVARIANCE),
        "sd × 1.25": Law(covariance=1.25**2 * COVARIANCE),
        "mean + 0.3 sd": Law(shift=0.3 * SD),
        "sign of the mean flipped": Law(gain=-GAIN),
        "one dimension independent of y": Law(gain=alone, covariance=inside),
        "correlations dropped": Law(covariance=np.diag(SD**2)),
        "posterior = prior": Law(gain=0 * GAIN, covariance=np.eye(3)),
    }
    matched = Law(covariance=DEGREES / (DEGREES - 2) * COVARIANCE)
    return {
        "exact": Case(linear, linear, exact=True),
        "exact, heavy tails": Case(heavy, heavy, exact=True, gaussian=False),
        "exact, two modes": Case(double, double, exact=True, gaussian=False),
        **{name: Case(linear, law) for name, law in defects.items()},
        "heavy tails missed": Case(heavy, matched, gaussian=False),
        "one mode of two missing": Case(double, Law(mode=MODE), gaussian=False),
    }


def below(statistic: np.ndarray, z: np.ndarray, n_runs: int, level: float) -> np.ndarray:
    """Where the p-value of γ is at most `level`: where γ is at most that of the band of this level."""
    return statistic <= ecdf_band(z, n_runs, level).gamma * (1 + 1e-9)


def from_ranks(ranked: RankPass, n: int) -> dict[str, np.ndarray]:
    """Verdicts `(repetitions,)` of the gates on ranks, each repetition being n runs: those of the gates, all repetitions at once.

    A family of m tests rejects somewhere by Holm if and only if one of them has p ≤ level / m.
    """
    names, n_samples = ranked.names, ranked.n_samples
    ranks = ranked.ranks.reshape(-1, n, len(names))
    columns = ranks.transpose(1, 0, 2).reshape(n, -1)
    grid = rank_grid(n, n_samples)
    z = grid / (n_samples + 1)
    gamma = gamma_statistic(rank_counts(columns, grid), z, n).reshape(-1, len(names))
    p_chi2 = chi2_uniform(columns, n_samples)[1].reshape(gamma.shape)
    each = LEVEL / len(names)
    sbc = below(gamma, z, n, GAMMA_SHARE * each) | (p_chi2 <= (1 - GAMMA_SHARE) * each)
    curves = [coverage_curves(ranked._replace(ranks=part), LEVELS) for part in ranks]
    covered = [
        below(gamma_statistic(np.stack([c[name][1] for c in curves]), level, n), level, n, LEVEL / len(curves[0]))
        for name, (level, _) in curves[0].items()
    ]
    tarp = below(gamma[:, names.index("tarp")], z, n, LEVEL)
    return {"SBC": sbc.any(axis=1), "coverage": np.any(covered, axis=0), "TARP": tarp}


def from_moments(case: Case, key: jax.Array, repetitions: int) -> dict[str, np.ndarray]:
    """Verdicts of agreement by its tolerances, and of equality at a level, where draws are Gaussian."""
    y_key, x_key = jax.random.split(key)
    y = observations(y_key, (repetitions, EVENTS))
    draws = np.asarray(jax.jit(lambda y, key: case.posterior.sample(Batch(y, jnp.ones_like(y)), key, MOMENT_DRAWS))(y, x_key), np.float64)
    agreement, equality = [], []
    for one, rows in zip(draws, np.asarray(y, np.float64), strict=True):
        result = posterior_agreement(one, case.world.moments(rows), level=LEVEL)
        verdicts = [rule["passed"] for rule in result.details["rules"]]
        agreement.append(not all(verdicts[:-3]))  # the last three are those of equality
        equality.append(not all(verdicts[-3:]))
    return {"agreement": np.array(agreement)} | ({"equality": np.array(equality)} if case.gaussian else {})


def _estimate(y: jax.Array, gain: jax.Array, oracle: jax.Array) -> jax.Array:
    return gain @ y


def _oracle(y: jax.Array, gain: jax.Array, oracle: jax.Array) -> jax.Array:
    return oracle @ y


def from_derivatives(case: Case, repetitions: int, seed: int) -> dict[str, np.ndarray]:
    """Verdicts of adjoint calibration on the posterior means, with probes of their own each time."""
    gains = tuple(jnp.broadcast_to(law.gain[...], (EVENTS, 3, 2)) for law in (case.posterior, case.world))
    y = jnp.zeros((EVENTS, 2))
    results = [adjoint_calibration(_estimate, _oracle, y, key=jax.random.key(seed + i), args=gains) for i in range(repetitions)]
    return {"adjoint": np.array([result.passed is False for result in results])}


def from_ratios(case: Case, key: jax.Array, repetitions: int) -> dict[str, np.ndarray]:
    """Verdicts of importance quality: more than one event in twenty with a tail beyond the limit."""

    @jax.jit
    def ratios(key: jax.Array) -> jax.Array:
        y_key, x_key = jax.random.split(key)
        y = observations(y_key, (repetitions * TAIL_EVENTS,))
        x = case.posterior.sample(Batch(y, jnp.ones_like(y)), x_key, TAIL_DRAWS)
        seen = Batch(y[:, None], jnp.ones_like(y[:, None]))
        return case.world.log_prob(x, seen) - case.posterior.log_prob(x, seen)

    tails = tail_shapes(np.asarray(ratios(key)))
    return {"importance": (tails.shape > tails.limit).reshape(repetitions, -1).mean(axis=1) > 0.05}


def rates(name: str, case: Case, repetitions: int, seed: int = 0) -> dict[str, float]:
    """The share of repetitions in which each gate rejects."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), sum(map(ord, name))), 3)
    simulator = LinearWorld(case.world) if case.gaussian else World(case.world)
    ranked = rank_pass(case.posterior, simulator, key=keys[0], n_runs=repetitions * RUNS, n_samples=DRAWS)
    verdicts = from_ranks(ranked, RUNS) | from_moments(case, keys[1], repetitions)
    verdicts |= from_derivatives(case, repetitions, seed) | from_ratios(case, keys[2], repetitions)
    return {gate: float(rejected.mean()) for gate, rejected in verdicts.items()}


HEADER = "| posterior | " + " | ".join(GATES) + " | caught by |\n" + "|---" * (len(GATES) + 2) + "|"


def line(name: str, row: dict[str, float], exact: bool) -> str:
    """One row in Markdown."""
    caught = ", ".join(gate for gate in GATES if row.get(gate, 0) >= POWER)
    last = "–" if exact else caught or "**nothing**"
    return f"| {name} | " + " | ".join(f"{row[gate]:.3f}" if gate in row else "–" for gate in GATES) + f" | {last} |"


def conclusions(rows: dict[str, dict[str, float]], exact: Sequence[str], repetitions: int) -> str:
    """What the rates say."""
    low, high = stats.binom.ppf([0.005, 0.995], repetitions, LEVEL) / repetitions
    sizes = [f"{gate} on {name} {rows[name][gate]:.3f}" for name in exact for gate in GATES if rows[name].get(gate, 0) > high]
    missed = [name for name, row in rows.items() if name not in exact and max(row.values()) < POWER]
    return (
        f"{repetitions} repetitions; 99 % of the rates of an exact test at 5 % lie within [{low:.3f}, {high:.3f}].\n"
        f"Sizes above it: {', '.join(sizes) or 'none'}. Defects that no gate catches with power {POWER:g}: {', '.join(missed) or 'none'}."
    )


def show_gates(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench gates", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=400)
    options = parser.parse_args(arguments)
    require(options.repetitions >= 2, "at least 2 repetitions", options.repetitions, "pass more")
    known = cases()
    print(HEADER)
    rows = {}
    for name, case in known.items():
        rows[name] = rates(name, case, options.repetitions)
        print(line(name, rows[name], case.exact), flush=True)
    print("\n" + conclusions(rows, [name for name, case in known.items() if case.exact], options.repetitions))
