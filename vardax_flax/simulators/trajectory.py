"""Whole trajectories of a chaotic system from sparse and noisy observations: the smoothing problem, as learned solvers are tested on it.

The truth starts on the attractor and is a solution of the model; the target is all of it.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Observing, Stepping
from vardax_flax.ops.integrate import rk4, rk4_trajectory
from vardax_flax.simulators.lorenz63 import Lorenz63Climatology
from vardax_flax.simulators.lorenz96 import Lorenz96Climatology
from vardax_flax.simulators.observe import check_noise
from vardax_flax.simulators.window import Window


class Trajectory(Observing, Stepping):
    """Interface of a trajectory x `(steps, n)`, the target, seen where a mask of the subclass is 1: y = x + σ ε there.

    Args:
        dt: RK4 step, in model time units.
        steps: states of the trajectory.
        observe_every_step: steps between two observed times.
        noise_std: σ, in the units of the state.
    """

    dt: float
    steps: int
    observe_every_step: int
    noise_std: float

    def __post_init__(self) -> None:
        require(self.steps > 1, "steps > 1", self.steps, "pass a longer trajectory")
        require(1 <= self.observe_every_step < self.steps, "1 <= observe_every_step < steps", self.observe_every_step, "change one of them")
        check_noise(self.noise_std, 0.0)

    @property
    @abc.abstractmethod
    def system(self) -> Window:
        """What is integrated."""

    @abc.abstractmethod
    def mask(self, key: jax.Array) -> jax.Array:
        """Where one trajectory is observed, `(steps, n)`."""

    def step(self, x: jax.Array) -> jax.Array:
        """The state `(n,)` one step later."""
        return rk4(self.system.tendency, x, self.dt)

    def attractor(self) -> np.ndarray:
        """States on the attractor `(states, n)`."""
        return self.system.attractor()

    def sample(self, key: jax.Array) -> Batch:
        key_state, key_observe = jax.random.split(key)
        start = self.system.draw_attractor(key_state)
        x = rk4_trajectory(self.system.tendency, start, self.dt, self.steps - 1)
        y, mask = self.observe(x, key_observe)
        return Batch(input=y, mask=mask, target=x)

    def observe(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_mask, key_noise = jax.random.split(key)
        mask = self.mask(key_mask).astype(x.dtype)
        return jnp.where(mask > 0, x + self.noise_std * jax.random.normal(key_noise, x.shape, x.dtype), 0), mask


@dataclasses.dataclass(frozen=True)
class Lorenz63Trajectory(Trajectory):
    """A trajectory of Lorenz-63, all of whose components are seen every few steps, but not near its ends.

    Reference for the set-up: Fablet et al. 2021, *Learning variational data assimilation models and solvers*.

    Args:
        dt, steps, observe_every_step, noise_std: of the trajectory and its observations.
        margin: steps at either end without observation.

    Raises:
        ConfigError: a field out of its range, or a margin that leaves nothing to observe.

    Example:
        >>> element = Lorenz63Trajectory().sample(jax.random.key(0))
        >>> element.target.shape, int(element.mask[:, 0].sum())
        ((200, 3), 23)
    """

    kind: ClassVar[str] = "lorenz63_trajectory"

    dt: float = 0.01
    steps: int = 200
    observe_every_step: int = 8
    noise_std: float = math.sqrt(2.0)
    margin: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= 2 * self.margin < self.steps, "0 <= margin < steps / 2", self.margin, "pass a shorter margin")

    @property
    def system(self) -> Lorenz63Climatology:
        return Lorenz63Climatology(dt=self.dt, steps=1, observe_every_step=1)

    def mask(self, key: jax.Array) -> jax.Array:
        times = jnp.arange(self.steps)
        seen = (times >= self.margin) & (times < self.steps - self.margin) & ((times - self.margin) % self.observe_every_step == 0)
        return jnp.broadcast_to(seen[:, None], (self.steps, 3))


@dataclasses.dataclass(frozen=True)
class Lorenz96Trajectory(Trajectory):
    """A trajectory of Lorenz-96, of which a fresh random set of sites is seen every few steps.

    Reference for the set-up: Fablet et al. 2021, *Learning variational data assimilation models and solvers*.

    Args:
        dt, steps, observe_every_step, noise_std: of the trajectory and its observations.
        n_sites: of the ring.
        observed_sites: at each observed time.
        forcing: F.

    Raises:
        ConfigError: a field out of its range.

    Example:
        >>> element = Lorenz96Trajectory().sample(jax.random.key(0))
        >>> element.target.shape, int(element.mask[0].sum())
        ((200, 40), 20)
    """

    kind: ClassVar[str] = "lorenz96_trajectory"

    dt: float = 0.05
    steps: int = 200
    observe_every_step: int = 4
    noise_std: float = math.sqrt(2.0)
    n_sites: int = 40
    observed_sites: int = 20
    forcing: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.observed_sites <= self.n_sites, "1 <= observed_sites <= n_sites", self.observed_sites, "change one of them")

    @property
    def system(self) -> Lorenz96Climatology:
        return Lorenz96Climatology(n_sites=self.n_sites, forcing=self.forcing, dt=self.dt, steps=1, observe_every_step=1)

    def mask(self, key: jax.Array) -> jax.Array:
        # the sites with the smallest of independent random numbers are a random set
        numbers = jax.random.uniform(key, (self.steps, self.n_sites))
        threshold = jnp.sort(numbers, axis=-1)[:, self.observed_sites - 1 : self.observed_sites]
        seen = jnp.arange(self.steps) % self.observe_every_step == 0
        return (numbers <= threshold) & seen[:, None]
