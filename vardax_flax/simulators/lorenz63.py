"""Lorenz-63: three chaotic variables, the smallest test of data assimilation."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import numpy as np

from vardax_flax.core.config import require
from vardax_flax.simulators.window import BackgroundWindow, ClimatologyWindow, Window, attractor_bank


def _tendency(x: Any, sigma: float, rho: float, beta: float) -> Any:
    """On NumPy and on JAX arrays, by the array's own namespace."""
    a, b, c = x[..., 0], x[..., 1], x[..., 2]
    return x.__array_namespace__().stack([sigma * (b - a), a * (rho - c) - b, a * b - beta * c], axis=-1)


@functools.lru_cache(maxsize=16)
def _bank(sigma: float, rho: float, beta: float) -> np.ndarray:
    start = np.random.default_rng(0).normal([0.0, 0.0, 25.0], 5.0, (256, 3))
    return attractor_bank(lambda x: _tendency(x, sigma, rho, beta), start, spin_up=20.0, snapshots=256)


@dataclasses.dataclass(frozen=True)
class _Lorenz63(Window):
    dt: float = 0.01
    steps: int = 100
    observe_every_step: int = 10
    observe_every_site: int = 1
    noise_std: float = math.sqrt(2.0)
    missing_rate: float = 0.0
    sigma: float = 10.0
    rho: float = 28.0
    beta: float = 8.0 / 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = min(self.sigma, self.rho, self.beta) > 0  # outside, the orbits need not stay bounded
        require(positive, "sigma, rho and beta > 0", (self.sigma, self.rho, self.beta), "pass positive parameters")

    def tendency(self, x: jax.Array) -> jax.Array:
        return _tendency(x, self.sigma, self.rho, self.beta)

    def attractor(self) -> np.ndarray:
        return _bank(self.sigma, self.rho, self.beta)


@dataclasses.dataclass(frozen=True)
class Lorenz63(_Lorenz63, BackgroundWindow):
    """Lorenz-63 window with a Gaussian prior around a background; the defaults are a classical 4D-Var twin experiment.

    dx/dt = σ(y − x), dy/dt = x(ρ − z) − y, dz/dt = x y − β z; x_b on the attractor, x₀ ~ N(x_b, b² I), observations
    N(H x_k, r² I) at the steps k = s, 2s, …, steps (Lorenz 1963, *Deterministic nonperiodic flow*; Evensen 1997 for the set-up).

    Args:
        dt: RK4 step, in model time units.
        steps: RK4 steps of the window, a multiple of `observe_every_step`.
        observe_every_step: s, steps between two observed times; nothing is observed at the start.
        observe_every_site: observe the variables 0, k, 2k, …
        noise_std: r, in the units of the state.
        missing_rate: probability in [0, 1) that a value is not observed.
        sigma: σ, Prandtl number.
        rho: ρ, relative Rayleigh number.
        beta: β, geometry.
        background_std: b, in the units of the state.

    Raises:
        ConfigError: a field out of its range, or steps that observe_every_step does not divide.

    Example:
        >>> element = Lorenz63().sample(jax.random.key(0))
        >>> element.input.shape, element.target.shape
        ((10, 3), (3,))
    """

    kind: ClassVar[str] = "lorenz63"

    background_std: float = 2.0


@dataclasses.dataclass(frozen=True)
class Lorenz63Climatology(_Lorenz63, ClimatologyWindow):
    """Lorenz-63 window whose prior is the attractor: draws but no density, and no background.

    dx/dt = σ(y − x), dy/dt = x(ρ − z) − y, dz/dt = x y − β z; x₀ on the attractor, observations N(H x_k, r² I)
    (Lorenz 1963, *Deterministic nonperiodic flow*).

    Args:
        dt: RK4 step, in model time units.
        steps: RK4 steps of the window, a multiple of `observe_every_step`.
        observe_every_step: steps between two observed times; nothing is observed at the start.
        observe_every_site: observe the variables 0, k, 2k, …
        noise_std: r, in the units of the state.
        missing_rate: probability in [0, 1) that a value is not observed.
        sigma: σ, Prandtl number.
        rho: ρ, relative Rayleigh number.
        beta: β, geometry.

    Raises:
        ConfigError: a field out of its range, or steps that observe_every_step does not divide.

    Example:
        >>> element = Lorenz63Climatology().sample(jax.random.key(0))
        >>> element.background is None
        True
    """

    kind: ClassVar[str] = "lorenz63_climatology"
