"""Lorenz-96: a ring of chaotic sites, the standard spatial test of data assimilation."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import numpy as np

from vardax_flax.core.config import require
from vardax_flax.simulators.window import BackgroundWindow, ClimatologyWindow, Window, attractor_bank

SNAPSHOTS = 256
MAX_ORBITS = 64
MAX_NUMBERS = 2**14  # integrated at once; long rings get fewer orbits, not more memory or time


def _tendency(x: Any, forcing: float) -> Any:
    """On NumPy and on JAX arrays, by the array's own namespace."""
    roll = x.__array_namespace__().roll
    return (roll(x, -1, axis=-1) - roll(x, 2, axis=-1)) * roll(x, 1, axis=-1) - x + forcing


@functools.lru_cache(maxsize=16)
def _bank(n_sites: int, forcing: float) -> np.ndarray:
    orbits = max(1, min(MAX_ORBITS, MAX_NUMBERS // n_sites))
    start = np.random.default_rng(0).normal(forcing, 1.0, (orbits, n_sites))
    return attractor_bank(lambda x: _tendency(x, forcing), start, spin_up=20.0, snapshots=SNAPSHOTS)


@dataclasses.dataclass(frozen=True)
class _Lorenz96(Window):
    n_sites: int = 40
    forcing: float = 8.0
    dt: float = 0.05
    steps: int = 8
    observe_every_step: int = 2
    observe_every_site: int = 2
    noise_std: float = 1.0
    missing_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_sites >= 4, "n_sites >= 4", self.n_sites, "pass a longer ring")
        require(math.isfinite(self.forcing), "a finite forcing", self.forcing, "pass a number such as 8.0")

    def tendency(self, x: jax.Array) -> jax.Array:
        return _tendency(x, self.forcing)

    def attractor(self) -> np.ndarray:
        return _bank(self.n_sites, self.forcing)


@dataclasses.dataclass(frozen=True)
class Lorenz96(_Lorenz96, BackgroundWindow):
    """Lorenz-96 window with a Gaussian prior around a background.

    dx_i/dt = (x_{i+1} − x_{i−2}) x_{i−1} − x_i + F, periodic; x_b on the attractor, x₀ ~ N(x_b, b² I), observations
    N(H x_k, r² I) at the steps k = s, 2s, …, steps (Lorenz 1996, *Predictability: a problem partly solved*).

    Args:
        n_sites: sites of the ring.
        forcing: F; chaotic from about 4.4, usually 8.
        dt: RK4 step, in model time units (0.05 is read as 6 hours).
        steps: RK4 steps of the window, a multiple of `observe_every_step`.
        observe_every_step: s, steps between two observed times; nothing is observed at the start.
        observe_every_site: observe the sites 0, k, 2k, …
        noise_std: r, in the units of the state.
        missing_rate: probability in [0, 1) that a value is not observed.
        background_std: b, in the units of the state.

    Raises:
        ConfigError: a field out of its range, or steps that observe_every_step does not divide.

    Example:
        >>> element = Lorenz96().sample(jax.random.key(0))
        >>> element.input.shape, element.target.shape
        ((4, 20), (40,))
    """

    kind: ClassVar[str] = "lorenz96"

    background_std: float = 1.0


@dataclasses.dataclass(frozen=True)
class Lorenz96Climatology(_Lorenz96, ClimatologyWindow):
    """Lorenz-96 window whose prior is the attractor: draws but no density, and no background.

    dx_i/dt = (x_{i+1} − x_{i−2}) x_{i−1} − x_i + F, periodic; x₀ on the attractor, observations N(H x_k, r² I)
    (Lorenz 1996, *Predictability: a problem partly solved*).

    Args:
        n_sites: sites of the ring.
        forcing: F; chaotic from about 4.4, usually 8.
        dt: RK4 step, in model time units (0.05 is read as 6 hours).
        steps: RK4 steps of the window, a multiple of `observe_every_step`.
        observe_every_step: steps between two observed times; nothing is observed at the start.
        observe_every_site: observe the sites 0, k, 2k, …
        noise_std: r, in the units of the state.
        missing_rate: probability in [0, 1) that a value is not observed.

    Raises:
        ConfigError: a field out of its range, or steps that observe_every_step does not divide.

    Example:
        >>> element = Lorenz96Climatology().sample(jax.random.key(0))
        >>> element.background is None
        True
    """

    kind: ClassVar[str] = "lorenz96_climatology"
