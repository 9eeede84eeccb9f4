"""The two-level Lorenz-96 model: slow variables on a ring, each of which drives fast ones that act back on it."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.config import check_choices, require
from vardax_flax.ops.integrate import rk4_trajectory
from vardax_flax.simulators.observe import observe, subsample
from vardax_flax.simulators.window import GAP, SUBSTEPS, ClimatologyWindow, attractor_bank

Parameters = tuple[int, float, float, float, float]  # slow variables, F, h, b, c


def _tendency(x: Any, parameters: Parameters) -> Any:
    """On NumPy and on JAX arrays, by the array's own namespace."""
    n, forcing, h, b, c = parameters
    space = x.__array_namespace__()
    roll, slow, fast = space.roll, x[..., :n], x[..., n:]
    groups = fast.reshape(*fast.shape[:-1], n, -1)
    coupling = h * c / b
    d_slow = (roll(slow, -1, axis=-1) - roll(slow, 2, axis=-1)) * roll(slow, 1, axis=-1) - slow + forcing - coupling * groups.sum(axis=-1)
    driven = space.repeat(slow, groups.shape[-1], axis=-1)
    advected = (roll(fast, 1, axis=-1) - roll(fast, -2, axis=-1)) * roll(fast, -1, axis=-1)
    return space.concatenate([d_slow, c * b * advected - c * fast + coupling * driven], axis=-1)


@functools.lru_cache(maxsize=4)
def _bank(parameters: Parameters, n_fast: int) -> np.ndarray:
    n, forcing, _, b, c = parameters
    rng = np.random.default_rng(0)
    start = np.concatenate([rng.normal(forcing / 4, 1.0, (16, n)), rng.normal(0, 1 / b, (16, n * n_fast))], axis=1)
    # the bank's clock made to run c/2 times slower, so that its steps resolve what is fast
    slower = max(1.0, c / 2)
    return attractor_bank(lambda x: _tendency(x, parameters) / slower, start, spin_up=8.0 * slower, snapshots=256)


@dataclasses.dataclass(frozen=True)
class Lorenz96TwoLevel(ClimatologyWindow):
    """Window of the two-level Lorenz-96 model whose prior is the attractor: draws but no density, and no background.

    dX_k/dt = (X_{k+1} − X_{k−2}) X_{k−1} − X_k + F − (hc/b) Σ_j Y_{j,k},
    dY_{j,k}/dt = c b (Y_{j−1,k} − Y_{j+2,k}) Y_{j+1,k} − c Y_{j,k} + (hc/b) X_k, periodic, the fast ones on one ring
    (Lorenz 1996, *Predictability: a problem partly solved*). The state is X₁ … X_K, Y_{1,1} … Y_{J,1}, Y_{1,2} … Y_{J,K}: by
    default 8 slow and 64 fast variables, which are about b times smaller and c times faster.

    Args:
        n_slow, n_fast: K slow variables, J fast ones of each.
        forcing, coupling, scale_ratio, time_ratio: F, h, b, c.
        dt: RK4 step, in model time units; at most about 0.1 / c.
        steps: RK4 steps of the window, a multiple of `observe_every_step`.
        observe_every_step: steps between two observed times; nothing is observed at the start.
        observed: "slow" variables or "all".
        observe_every_site: observe each, or every second … of them.
        noise_std: r of the slow variables, in their units; r / b of the fast ones.
        missing_rate: probability in [0, 1) that a value is not observed.

    Raises:
        ConfigError: a field out of its range, or steps that observe_every_step does not divide.

    Example:
        >>> element = Lorenz96TwoLevel().sample(jax.random.key(0))
        >>> element.input.shape, element.target.shape
        ((4, 8), (72,))
    """

    kind: ClassVar[str] = "lorenz96_two_level"

    n_slow: int = 8
    n_fast: int = 8
    forcing: float = 20.0
    coupling: float = 1.0
    scale_ratio: float = 10.0
    time_ratio: float = 10.0
    dt: float = 0.005
    steps: int = 40
    observe_every_step: int = 10
    observed: Literal["slow", "all"] = "slow"
    observe_every_site: int = 1
    noise_std: float = 0.5
    missing_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        require(self.n_slow >= 4 and self.n_fast >= 1, "n_slow >= 4 and n_fast >= 1", (self.n_slow, self.n_fast), "pass a longer ring")
        require(math.isfinite(self.forcing), "a finite forcing", self.forcing, "pass a number such as 20.0")
        ratios = (self.coupling, self.scale_ratio, self.time_ratio)
        require(all(0 < r < math.inf for r in ratios), "coupling, scale_ratio and time_ratio > 0", ratios, "pass positive numbers")

    @property
    def _parameters(self) -> Parameters:
        return self.n_slow, self.forcing, self.coupling, self.scale_ratio, self.time_ratio

    def tendency(self, x: jax.Array) -> jax.Array:
        return _tendency(x, self._parameters)

    def attractor(self) -> np.ndarray:
        return _bank(self._parameters, self.n_fast)

    def draw_attractor(self, key: jax.Array) -> jax.Array:
        key_state, key_time = jax.random.split(key)
        bank = jnp.asarray(self.attractor().astype(jnp.result_type(float), copy=False))
        state = bank[jax.random.randint(key_state, (), 0, bank.shape[0])]
        # as far as the bank's slower clock goes from one state to the next
        dt = jax.random.uniform(key_time, (), bank.dtype) * (GAP / SUBSTEPS / max(1.0, self.time_ratio / 2))
        return rk4_trajectory(self.tendency, state, dt, SUBSTEPS, save_every=SUBSTEPS)[-1]

    def scales(self) -> np.ndarray:
        """1 of the slow variables, 1 / b of the fast ones, `(n,)`: how large their errors are beside each other."""
        return np.concatenate([np.ones(self.n_slow), np.full(self.n_slow * self.n_fast, 1 / self.scale_ratio)])

    def predict(self, x: jax.Array) -> jax.Array:
        states = rk4_trajectory(self.tendency, x, self.dt, self.steps, save_every=self.observe_every_step)
        return subsample(states[:, : self._seen], 1, self.observe_every_site)

    def observe(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        predicted = self.predict(x)
        noise = jnp.asarray(self.noise_std * self.scales()[: self._seen : self.observe_every_site], predicted.dtype)
        return observe(key, predicted, noise, self.missing_rate)

    @property
    def _seen(self) -> int:
        return self.n_slow if self.observed == "slow" else self.n_slow * (1 + self.n_fast)
