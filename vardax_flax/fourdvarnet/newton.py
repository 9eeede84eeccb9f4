"""Steps of a solver whose model is known: Gauss–Newton on the weak-constraint cost, after the learned ones or before them.

After them where Newton's method would be lost: the learned descent finds the right basin, and Newton's method its bottom, to which a
descent would crawl. Before them where it finds its way from the first guess: what is left to learn is how the mean of the posterior
departs from its mode. An iteration costs about as much as one of the learned ones, or less.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import check_choices, require
from vardax_flax.core.interfaces import Stepping
from vardax_flax.nn import Statistic
from vardax_flax.ops.blocks import map_blocks
from vardax_flax.ops.small import UNROLLED
from vardax_flax.ops.smoother import iterated_smoother, weak_cost

BLOCK = 64  # windows of small states at once


class NewtonSteps(nnx.Module):
    """Iterations of a Kalman smoother around the latest trajectory, with a model error that shrinks from step to step.

    A window that they leave with numbers that are not finite, or with a higher cost, keeps what it had.

    Args:
        model: whose steps and noise are known.
        n: size of a state.
        config: how many, and the model errors.
    """

    def __init__(self, model: Stepping, n: int, config: NewtonConfig) -> None:
        self.step, self.noise_std, self.config = model.step, model.noise_std, config
        self.mean = Statistic(jnp.zeros((n,)))
        self.cov = Statistic(jnp.eye(n))

    def calibrate(self, batch: Batch) -> None:
        """Learn mean and covariance of a state."""
        states = batch.target.reshape(-1, batch.target.shape[-1])
        mean = states.mean(axis=0)
        self.mean[...], self.cov[...] = mean, (states - mean).T @ (states - mean) / len(states)

    def __call__(self, x: jax.Array, batch: Batch) -> jax.Array:
        """The trajectories `(*batch, times, n)` after the steps, in physical units."""
        n = x.shape[-1]
        # what a state can be at all: the climate, and a share of its variance in all directions
        cov = self.cov[...] + 1e-3 * jnp.trace(self.cov[...]) / n * jnp.eye(n, dtype=x.dtype)
        std = jnp.asarray(np.geomspace(*self.config.model_std, self.config.steps), x.dtype)

        def one(rows: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            x, y, mask = rows
            seen = (jnp.where(mask > 0, y, 0), mask / self.noise_std**2, self.mean[...], cov)
            found, cost = iterated_smoother(self.step, x, *seen, std)
            before = weak_cost(self.step, x, *seen, std[-1])
            better = jnp.isfinite(found).all() & jnp.isfinite(cost) & ~(cost > before)
            return jnp.where(better, found, x)

        rows = jax.tree.map(lambda a: a.reshape(-1, *x.shape[-2:]), (x, batch.input, batch.mask))
        # large ones alone, so that a time without observation costs no update
        solved = map_blocks(jax.vmap(one), rows, BLOCK) if n <= UNROLLED else jax.lax.map(one, rows)
        return solved.reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class NewtonConfig:
    """Steps of Gauss–Newton with the known model.

    Args:
        steps: how many.
        model_std: standard deviation of the model error in a time step, in the first and the last of them, in the units of the state.
        place: "last", after the learned descent, or "first", before it.
    """

    steps: int = 6
    model_std: tuple[float, float] = (0.3, 0.02)
    place: Literal["first", "last"] = "last"

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.steps > 0, "steps > 0", self.steps, "pass a positive number")
        require(0 < min(self.model_std) <= max(self.model_std) < math.inf, "model_std > 0", self.model_std, "pass positive numbers")

    def build(self, state: tuple[int, ...], simulator: Any) -> NewtonSteps:
        """The steps for trajectories of a `Stepping` simulator.

        Raises:
            ConfigError: the simulator is none, or the state is no series of vectors.
        """
        got = getattr(simulator, "kind", None)
        require(isinstance(simulator, Stepping), "a `Stepping` simulator, whose model is known, for Newton steps", got, "leave them out")
        require(len(state) == 2, "a state (time, sites) for Newton steps", state, "leave them out")
        return NewtonSteps(simulator, state[-1], self)
