"""The mean of the posterior of a small chaotic system, by brute force: millions of orbits on its attractor, weighted by what they explain.

No estimator has a smaller mean square error in expectation: this is how good a learned solver can be.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.ops.integrate import rk4_trajectory
from vardax_flax.simulators import Trajectory

ORBITS, STARTS = 4096, 1000  # four million windows, of which on Lorenz-63 three hundred carry the weight
HEAVIEST = 4000  # of a window, which are averaged
LARGEST = 3  # components of a state: in more no orbit comes near


def make_orbits(simulator: Trajectory, key: jax.Array) -> jax.Array:
    """Solutions of the model that start on the attractor, `(ORBITS, STARTS + steps, n)`."""

    def orbit(key: jax.Array) -> jax.Array:
        start = simulator.system.draw_attractor(key)
        return rk4_trajectory(simulator.system.tendency, start, simulator.dt, STARTS + simulator.steps - 1)

    return jax.jit(jax.vmap(orbit))(jax.random.split(key, ORBITS))


def posterior_mean(simulator: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, np.ndarray]:
    """E[x | y] of each window `(windows, steps, n)`, and how many orbits carry its weight `(windows,)`.

    All windows must be observed at the same times, as those of `Lorenz63Trajectory` are.

    Raises:
        ConfigError: a simulator that is no `Trajectory` of few components, or masks that differ.
    """
    n = batch.target.shape[-1]
    small = isinstance(simulator, Trajectory) and n <= LARGEST
    require(small, f"a trajectory of at most {LARGEST} components for an oracle", f"{simulator.kind} with {n}", "leave it out")
    mask = np.asarray(batch.mask)
    require(bool((mask == mask[:1]).all()), "windows observed at the same times for an oracle", "others", "leave it out")
    times = np.flatnonzero(mask[0].any(axis=-1))
    orbits = make_orbits(simulator, key)

    def one(y: jax.Array) -> tuple[jax.Array, jax.Array]:
        def add(total: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            then = jax.lax.dynamic_slice_in_dim(orbits, t, STARTS, axis=1)
            misfit = jnp.where(mask[0, times[0]] > 0, then - y[t], 0)
            return total - 0.5 * jnp.square(misfit / simulator.noise_std).sum(axis=-1), None

        log_weight = jax.lax.scan(add, jnp.zeros((ORBITS, STARTS)), jnp.asarray(times))[0]
        weight = jax.nn.softmax(log_weight.ravel())
        heaviest, where = jax.lax.top_k(weight, HEAVIEST)
        cut = lambda i: jax.lax.dynamic_slice(orbits, (i // STARTS, i % STARTS, 0), (1, simulator.steps, n))[0]  # noqa: E731
        return jnp.tensordot(heaviest / heaviest.sum(), jax.vmap(cut)(where), 1), 1 / jnp.square(weight).sum()

    mean, effective = jax.jit(lambda y: jax.lax.map(one, y))(batch.input)
    return mean, np.asarray(effective)
