"""Windows of a chaotic system: infer the state at the start of a window from what is observed of it later.

    attractor → [x_b → ] x₀ → x₁ … x_steps by RK4 → every few steps, every few sites, with noise and gaps

Two priors make two kinds per system, because what is known differs: around a background the prior has a density
(`BackgroundWindow`, a `LogJoint`); a draw from the attractor has none (`ClimatologyWindow`).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import LeastSquares, Observing, Physics
from vardax_flax.ops.guard import finite_cotangents
from vardax_flax.ops.integrate import rk4, rk4_trajectory
from vardax_flax.simulators.observe import check_noise, gaussian_log_likelihood, observe, subsample

GAP = 0.1  # model time between two states of an orbit in the bank
SUBSTEPS = 4  # RK4 steps that cross at most one gap when drawing; the bank itself takes twice as many


def attractor_bank(tendency: Callable[[Any], Any], start: np.ndarray, spin_up: float, snapshots: int) -> np.ndarray:
    """States on the attractor of a dissipative system: many orbits, each saved every `GAP` after a spin-up.

    Computed by NumPy in float64 on the host, so it is the same for every device and precision.

    Args:
        tendency: dx/dt of states `(..., n)`, on NumPy arrays.
        start: initial states `(orbits, n)`.
        spin_up: model time to forget them.
        snapshots: states saved of each orbit.

    Returns:
        `(snapshots * orbits, n)` float64, read-only.

    Raises:
        ConfigError: the orbits diverge.
    """
    dt, steps = GAP / (2 * SUBSTEPS), 2 * SUBSTEPS
    states = np.asarray(start, dtype=np.float64)
    bank = np.empty((snapshots, *states.shape))
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(round(spin_up / dt)):
            states = rk4(tendency, states, dt)
        for snapshot in range(snapshots):
            for _ in range(steps):
                states = rk4(tendency, states, dt)
            bank[snapshot] = states
    require(bool(np.isfinite(bank).all()), "parameters with a bounded attractor", "orbits that diverge", "check the system's parameters")
    bank = bank.reshape(-1, states.shape[-1])
    bank.setflags(write=False)
    return bank


class Window(Physics, Observing):
    """Interface of a system seen through a window: subclasses bring the tendency, the attractor and the fields named here.

    Args:
        dt: RK4 step, in model time units.
        steps: RK4 steps of the window, a multiple of `observe_every_step`.
        observe_every_step: steps between two observed times; nothing is observed at the start.
        observe_every_site: sites between two observed sites.
        noise_std: standard deviation of the observation error, in the units of the state.
        missing_rate: probability in [0, 1) that a value is not observed.
    """

    dt: float
    steps: int
    observe_every_step: int
    observe_every_site: int
    noise_std: float
    missing_rate: float

    def __post_init__(self) -> None:
        require(0 < self.dt < math.inf, "dt > 0", self.dt, "pass a positive time step")
        require(self.observe_every_step >= 1, "observe_every_step >= 1", self.observe_every_step, "observe at most every step")
        require(self.observe_every_site >= 1, "observe_every_site >= 1", self.observe_every_site, "observe at most every site")
        require(
            self.steps >= 1 and self.steps % self.observe_every_step == 0,
            f"steps as a positive multiple of observe_every_step = {self.observe_every_step}",
            self.steps,
            "change one of them",
        )
        check_noise(self.noise_std, self.missing_rate)

    @abc.abstractmethod
    def tendency(self, x: jax.Array) -> jax.Array:
        """dx/dt of states `(..., n)`, in state units per model time unit."""

    @abc.abstractmethod
    def attractor(self) -> np.ndarray:
        """States on the attractor `(states, n)`, float64; the same array at every call."""

    def trajectory(self, x0: jax.Array) -> jax.Array:
        """States x₀, x₁, …, x_steps, shape `(steps + 1, n)`."""
        return rk4_trajectory(self.tendency, x0, self.dt, self.steps)

    def predict(self, x: jax.Array) -> jax.Array:
        """H(M(x₀)): the observed sites at the observed times, without noise, `(steps // observe_every_step, sites observed)`."""
        states = rk4_trajectory(self.tendency, x, self.dt, self.steps, save_every=self.observe_every_step)
        return subsample(states, 1, self.observe_every_site)

    def observe(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return observe(key, self.predict(x), self.noise_std, self.missing_rate)

    def draw_attractor(self, key: jax.Array) -> jax.Array:
        """A state on the attractor `(n,)`: one of the bank, advanced by a random fraction of the gap to its successor."""
        key_state, key_time = jax.random.split(key)
        # a traced constant is remembered by the identity of its NumPy array: one object must not serve two precisions
        bank = jnp.asarray(self.attractor().astype(jnp.result_type(float), copy=False))
        state = bank[jax.random.randint(key_state, (), 0, bank.shape[0])]
        dt = jax.random.uniform(key_time, (), bank.dtype) * (GAP / SUBSTEPS)
        return rk4_trajectory(self.tendency, state, dt, SUBSTEPS, save_every=SUBSTEPS)[-1]


class BackgroundWindow(Window, LeastSquares):
    """Interface of a window whose prior is Gaussian around a background: x_b on the attractor, x₀ ~ N(x_b, b² I).

    Args:
        background_std: b, in the units of the state.
    """

    background_std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.background_std < math.inf, "background_std > 0", self.background_std, "pass a positive standard deviation")

    def sample(self, key: jax.Array) -> Batch:
        key_background, key_state, key_observe = jax.random.split(key, 3)
        background = self.draw_attractor(key_background)
        x = background + self.background_std * jax.random.normal(key_state, background.shape, background.dtype)
        y, mask = self.observe(x, key_observe)
        return Batch(input=y, mask=mask, target=x, background=background)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return gaussian_log_likelihood(x, jnp.ones_like(x), element.background, self.background_std)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        predicted = self.predict(finite_cotangents(x))
        whole = jnp.isfinite(predicted)
        value = gaussian_log_likelihood(element.input, element.mask, jnp.where(whole, predicted, 0), self.noise_std)
        # a finite state whose trajectory explodes did not cause what was seen; one that is not finite is no state
        exploded = ((element.mask > 0) & ~whole).any()
        return jnp.where(exploded, jnp.where(jnp.isfinite(x).all(), -jnp.inf, jnp.nan), value)

    def residual(self, x: jax.Array, element: Batch) -> jax.Array:
        prior = (x - element.background) / self.background_std
        misfit = jnp.where(element.mask == 1, self.predict(x) - element.input, 0) / self.noise_std
        return jnp.concatenate([prior.ravel(), misfit.ravel()])


class ClimatologyWindow(Window):
    """Interface of a window whose prior is the attractor itself: draws but no density, and no background."""

    def sample(self, key: jax.Array) -> Batch:
        key_state, key_observe = jax.random.split(key)
        x = self.draw_attractor(key_state)
        y, mask = self.observe(x, key_observe)
        return Batch(input=y, mask=mask, target=x)
