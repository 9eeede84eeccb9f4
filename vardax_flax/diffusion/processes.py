"""Noise processes: how a state is drowned in noise, and which levels of noise a network trains on.

Every process here has a Gaussian kernel x_t | x₀ ~ N(α(t) x₀, σ(t)² I). But for its scale that is u = cos φ x₀ + sin φ ε at the *angle*
φ = arctan(σ / α), between 0 (data) and π/2 (noise), so one network, one set of samplers and one density serve all of them in that
coordinate (Karras et al. 2022, *Elucidating the design space of diffusion-based generative models*, appendix B; Lu & Song 2024). What is
left to a process is the range of levels σ / α and how often each is trained.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from vardax_flax.core.config import require

RHO = 5.0  # most steps go where the angle is small: at 18 of Heun, normals of sd 0.01 to 1 come out within 1.3 % of it


class NoiseProcess(abc.ABC):
    """Interface of a noise process with time t in [first, last], from least to most noise."""

    kind: ClassVar[str]
    first: ClassVar[float] = 1e-3
    last: ClassVar[float] = 1.0

    @abc.abstractmethod
    def kernel(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """α(t) and σ(t), elementwise."""

    def training_time(self, u: jax.Array) -> jax.Array:
        """The time to train on at u ~ U(0, 1), elementwise: uniform, unless a process knows better."""
        return self.first + (self.last - self.first) * u

    def level(self, t: jax.Array) -> jax.Array:
        """σ(t) / α(t), elementwise."""
        alpha, sigma = self.kernel(t)
        return sigma / alpha

    def training_level(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The level to train on at u ~ U(0, 1), and the density of log level there, elementwise."""
        log_level, slope = jax.jvp(lambda u: jnp.log(self.level(self.training_time(u))), (u,), (jnp.ones_like(u),))
        return jnp.exp(log_level), 1 / slope

    def angles(self, n: int) -> jax.Array:
        """n angles from the largest to the smallest, then 0: `(n + 1,)`, for a sampler of n steps.

        φ_i = (φ_max^{1/ρ} + i / (n − 1) (φ_min^{1/ρ} − φ_max^{1/ρ}))^ρ, ρ = 5.
        """
        require(n >= 2, "at least 2 steps", n, "pass more")
        low, high = (jnp.arctan(self.level(jnp.asarray(t))) ** (1 / RHO) for t in (self.first, self.last))
        return jnp.append((high + jnp.linspace(0, 1, n) * (low - high)) ** RHO, 0.0)


@dataclasses.dataclass(frozen=True)
class VariancePreserving(NoiseProcess):
    """dx = −½ β(t) x dt + √β(t) dW, β from `beta_min` to `beta_max`: α² + σ² = 1 (Ho et al. 2020; Song et al. 2021)."""

    kind: ClassVar[str] = "vp"

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require(0 < self.beta_min <= self.beta_max < math.inf, "0 < beta_min <= beta_max", self, "pass such rates")

    def _log_alpha(self, t: jax.Array) -> jax.Array:
        return -0.5 * (self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * jnp.square(t))

    def kernel(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_alpha = self._log_alpha(t)
        return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))


@dataclasses.dataclass(frozen=True)
class SubVariancePreserving(NoiseProcess):
    """The drift of `VariancePreserving` with less noise: σ = 1 − α² (Song et al. 2021, equation 14)."""

    kind: ClassVar[str] = "sub_vp"

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require(0 < self.beta_min <= self.beta_max < math.inf, "0 < beta_min <= beta_max", self, "pass such rates")

    def kernel(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_alpha = VariancePreserving(self.beta_min, self.beta_max)._log_alpha(t)
        return jnp.exp(log_alpha), -jnp.expm1(2 * log_alpha)


@dataclasses.dataclass(frozen=True)
class VarianceExploding(NoiseProcess):
    """Noise alone, its level growing by a constant factor: α = 1, σ = σ_min (σ_max / σ_min)^t (Song et al. 2021)."""

    kind: ClassVar[str] = "ve"
    first: ClassVar[float] = 0.0

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require(0 < self.sigma_min < self.sigma_max < math.inf, "0 < sigma_min < sigma_max", self, "pass such levels")

    def kernel(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t


@dataclasses.dataclass(frozen=True)
class EDM(NoiseProcess):
    """Noise alone, t its level, trained where it is hard: log σ ~ N(P_mean, P_std²) within the range (Karras et al. 2022, table 1)."""

    kind: ClassVar[str] = "edm"

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    log_mean: float = -1.2
    log_std: float = 1.2

    def __post_init__(self) -> None:
        require(0 < self.sigma_min < self.sigma_max < math.inf, "0 < sigma_min < sigma_max", self, "pass such levels")
        require(0 < self.log_std < math.inf and math.isfinite(self.log_mean), "log_std > 0", self, "pass such a spread")
        low, high = ((math.log(s) - self.log_mean) / self.log_std for s in (self.sigma_min, self.sigma_max))
        require(low < 2 and high > -2, "log_mean near the range of levels", self, "pass one between their logarithms")

    @property
    def first(self) -> float:  # type: ignore[override]
        """The smallest level."""
        return self.sigma_min

    @property
    def last(self) -> float:  # type: ignore[override]
        """The largest level."""
        return self.sigma_max

    def kernel(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.ones_like(t), t

    def training_time(self, u: jax.Array) -> jax.Array:
        # the normal distribution cut to the range of levels
        low, high = (jax.scipy.stats.norm.cdf((math.log(s) - self.log_mean) / self.log_std) for s in (self.sigma_min, self.sigma_max))
        z = jax.scipy.stats.norm.ppf(jnp.clip(low + (high - low) * u, 1e-6, 1 - 1e-6))
        return jnp.exp(self.log_mean + self.log_std * z)


@dataclasses.dataclass(frozen=True)
class FlowMatching(NoiseProcess):
    """The straight path between data and noise: x_t = (1 − t) x₀ + t ε (Lipman et al. 2023; Liu et al. 2023, *rectified flow*).

    The velocity ε − x₀ that flow matching regresses on is an affine function of the denoised state, so it is the same network.
    """

    kind: ClassVar[str] = "flow_matching"
    first: ClassVar[float] = 2e-3
    last: ClassVar[float] = 0.99

    def kernel(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return 1 - t, t


Process = VariancePreserving | SubVariancePreserving | VarianceExploding | EDM | FlowMatching
PROCESSES = {cls.kind: cls for cls in (VariancePreserving, SubVariancePreserving, VarianceExploding, EDM, FlowMatching)}
