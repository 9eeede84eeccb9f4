"""Score the benchmark tasks:  python -m eval.bench sbi [--simulations 10000] [--tasks two_moons slcp …]

Every task is trained with the one configuration of `train/presets/sbi.py` on that many simulations, a tenth of them held out, and judged by
the classifier two-sample test against the posteriors of five observations: 0.5 is best, 1 worst.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.reference import load_reference
from train.presets.sbi import STORED, TASKS, experiment
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, closest, require
from vardax_flax.core.interfaces import ExactDraws, LogJoint
from vardax_flax.posteriors import Amortized
from vardax_flax.simulators import SLCPDistractors
from vardax_flax.streams import ArrayStream
from vardax_flax.training import fit
from vardax_flax.validation import c2st
from vardax_flax.validation.importance import log_joint

OBSERVATIONS, DRAWS = 5, 10_000
# NPE with 10⁴ simulations, mean over ten observations: the results published with Lueckmann et al. 2021; the mixture after its correction
PUBLISHED = {
    "two_moons": 0.606, "gaussian_linear": 0.552, "gaussian_linear_uniform": 0.553, "gaussian_mixture": 0.615, "slcp": 0.901,
    "slcp_distractors": 0.970, "bernoulli_glm": 0.678, "bernoulli_glm_raw": 0.765, "sir": 0.680, "lotka_volterra": 0.997,
}  # fmt: skip
POSITIVE = ("sir", "lotka_volterra")  # parameters whose logarithm the reference sampler moves
PROPOSALS, DEGREES, WIDEN = 200_000, 5.0, 1.1  # of the importance sampler


class Reference(NamedTuple):
    """Observations `(5, *obs)`, draws of their posteriors `(5, 10000, dim)`."""

    observations: np.ndarray
    draws: np.ndarray


def reference(task: str) -> Reference:
    """Posteriors to compare with: stored draws, exact draws, or importance sampling around the mode."""
    if task in STORED:
        stored = load_reference(f"tests/data/{task}.npz")
        return Reference(np.asarray(stored.batch.input), stored.draws)
    simulator: Any = TASKS[task]
    keys = jax.random.split(jax.random.key(2021), OBSERVATIONS)
    elements = jax.jit(jax.vmap(simulator.sample))(keys)
    others = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)  # not what the observation was drawn with
    if isinstance(simulator, SLCPDistractors):  # the stored observations, hidden among distractors, have the stored posteriors
        stored = load_reference("tests/data/slcp.npz")
        return Reference(np.asarray(jax.vmap(simulator.hide)(elements.input, jnp.asarray(stored.batch.input))), stored.draws)
    if isinstance(simulator, ExactDraws):
        draws: list[Any] = [simulator.posterior_samples(x, key, DRAWS) for x, key in zip(elements.input, others, strict=True)]
    else:
        rows = [Batch(*(None if field is None else field[i] for field in elements)) for i in range(OBSERVATIONS)]
        draws = [importance_draws(simulator, row, key, task in POSITIVE) for row, key in zip(rows, others, strict=True)]
    return Reference(np.asarray(elements.input), np.asarray(draws))


def importance_draws(simulator: LogJoint, element: Batch, key: jax.Array, positive: bool) -> np.ndarray:
    """10 000 draws `(10000, dim)` of a posterior of one mode, resampled from a Student-t with the curvature there, in float64.

    Raises:
        ConfigError: an effective sample size below 20 000 of 200 000: the posterior is not of that shape.
    """
    with jax.enable_x64(True):
        element = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), element)
        joint = log_joint(simulator)
        to_theta = jnp.exp if positive else (lambda u: u)

        @jax.jit
        def log_density(u: jax.Array) -> jax.Array:
            return joint(to_theta(u), element) + (u.sum() if positive else 0.0)

        mode = _climb(log_density, jnp.log(element.target) if positive else jnp.asarray(element.target))
        root = jnp.linalg.inv(jnp.linalg.cholesky(-jax.hessian(log_density)(mode))).T
        key_normal, key_chi, key_pick = jax.random.split(key, 3)
        tail = jnp.sqrt(DEGREES / (2 * jax.random.gamma(key_chi, DEGREES / 2, (PROPOSALS, 1))))
        white = WIDEN * tail * jax.random.normal(key_normal, (PROPOSALS, mode.size))
        u = mode + white @ root.T
        log_proposal = -0.5 * (DEGREES + mode.size) * jnp.log1p(jnp.square(white / WIDEN).sum(axis=-1) / DEGREES)
        log_weight = jax.lax.map(log_density, u, batch_size=10_000) - log_proposal
        weight = jax.nn.softmax(jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf))
        effective = float(1 / jnp.square(weight).sum())
        require(effective > PROPOSALS / 10, f"an effective sample size above {PROPOSALS // 10}", effective, "sample it by MCMC")
        return np.asarray(to_theta(u[jax.random.choice(key_pick, PROPOSALS, (DRAWS,), p=weight)]), np.float32)


def _climb(log_joint: Any, u: jax.Array) -> jax.Array:
    """Newton's method with halved steps, from the true parameters."""
    value, derivatives = jax.jit(log_joint), jax.jit(lambda u: (jax.grad(log_joint)(u), jax.hessian(log_joint)(u)))
    for _ in range(100):
        gradient, hessian = derivatives(u)
        size, axes = jnp.linalg.eigh(-hessian)
        step = axes @ ((axes.T @ gradient) / jnp.maximum(jnp.abs(size), 1e-6))
        length = 1.0
        while not value(u + length * step) >= value(u) and length > 1e-8:
            length /= 2
        u = u + length * step
        if jnp.abs(length * step).max() < 1e-9:
            break
    return u


def score(task: str, simulations: int) -> dict[str, Any]:
    """Train on a task and score it: C2ST of each observation, seconds of training with compilation."""
    preset, simulator = experiment(task), TASKS[task]
    keys = jax.random.split(jax.random.key(preset.data_seed), simulations)
    stream = ArrayStream(jax.tree.map(np.asarray, jax.jit(jax.vmap(simulator.sample))(keys)), preset.batch_size, preset.data_seed)
    posterior = preset.build()
    assert isinstance(posterior, Amortized)
    began = time.perf_counter()
    fit(posterior, stream, preset.fit, progress=False)
    seconds = time.perf_counter() - began
    truth = reference(task)
    x = jnp.asarray(truth.observations)
    draws = np.asarray(posterior.sample(Batch(input=x, mask=jnp.ones_like(x)), jax.random.key(1), DRAWS))
    values = [c2st(p, q) for p, q in zip(truth.draws, draws, strict=True)]
    return {"c2st": values, "seconds": seconds}


def show_sbi(arguments: list[str]) -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench sbi", description=__doc__)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    options = parser.parse_args(arguments)
    require(options.simulations >= 1000, "at least 1000 simulations", options.simulations, "pass more")
    for task in options.tasks:
        if task not in TASKS:
            raise ConfigError(f"expected a task of {', '.join(TASKS)}, got {task!r}; do pick one{closest(task, TASKS)}")
    columns = (f"task, {options.simulations:,} simulations", "mean C2ST", "of each observation", "published NPE, 10⁴", "training, s")
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for task in options.tasks:
        row = score(task, options.simulations)
        each = " ".join(f"{value:.3f}" for value in row["c2st"])
        print(f"| {task} | {np.mean(row['c2st']):.3f} | {each} | {PUBLISHED[task]:.3f} | {row['seconds']:.0f} |", flush=True)
