"""Priors of independent components with known distribution functions: uniform, normal, log-normal, and one beside the other."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Marginals
from vardax_flax.ops.gaussian import standard_log_prob

Vector = tuple[float, ...]
NEWTON_STEPS = 8  # to rounding, however far out


def _check(**vectors: Vector) -> None:
    for name, values in vectors.items():
        require(len(values) > 0 and all(map(math.isfinite, values)), f"finite numbers in `{name}`", values, "pass one for each component")
    sizes = [len(values) for values in vectors.values()]
    require(len(set(sizes)) == 1, f"as many numbers in {' and '.join(vectors)}", sizes, "pass one for each component")


def log_normal_cdf_inverse(log_probability: jax.Array) -> jax.Array:
    """w ≤ 0 with log Φ(w) = ℓ for ℓ ≤ log ½, however small the probability: Newton's method from −√(−2ℓ), from where it cannot overshoot.

    log Φ is concave and lies below −w²/2 on the left, so every step ends left of the solution.
    """

    def step(w: jax.Array, _: None) -> tuple[jax.Array, None]:
        value = log_ndtr(w)
        slope = jnp.exp(-0.5 * jnp.square(w) - value - 0.5 * math.log(2 * math.pi))
        return w - (value - log_probability) / slope, None

    return jax.lax.scan(step, -jnp.sqrt(-2 * log_probability), length=NEWTON_STEPS)[0]


@dataclasses.dataclass(frozen=True)
class Uniform(Marginals):
    """xᵢ ~ U[lowᵢ, highᵢ], independent.

    The logit of the distribution function is log(x − low) − log(high − x). A state on an edge, where rounding puts some, counts as a
    quarter of a rounding error inside.

    Args:
        low, high: the edges, a number for each component, in the units of x.

    Raises:
        ConfigError: an interval without length, or another number of edges on either side.

    Example:
        >>> prior = Uniform((-1.0, 0.0), (1.0, 10.0))
        >>> prior.sample(jax.random.key(0)).shape
        (2,)
    """

    low: Vector
    high: Vector

    def __post_init__(self) -> None:
        _check(low=self.low, high=self.high)
        require(all(a < b for a, b in zip(self.low, self.high, strict=True)), "low < high", (self.low, self.high), "swap them")

    @classmethod
    def box(cls, size: int, half_width: float) -> Uniform:
        """U[−w, w]^d."""
        return cls((-half_width,) * size, (half_width,) * size)

    @property
    def size(self) -> int:
        return len(self.low)

    def _edges(self) -> tuple[jax.Array, jax.Array]:
        return jnp.array(self.low), jnp.array(self.high)

    def sample(self, key: jax.Array) -> jax.Array:
        low, high = self._edges()
        return jax.random.uniform(key, (self.size,), minval=low, maxval=high)

    def log_prob(self, x: jax.Array) -> jax.Array:
        low, high = self._edges()
        inside = jnp.all((x >= low) & (x <= high), axis=-1)
        return jnp.where(inside, -sum(math.log(b - a) for a, b in zip(self.low, self.high, strict=True)), -jnp.inf)

    def to_logit(self, x: jax.Array) -> jax.Array:
        low, high = self._edges()
        least = 0.25 * jnp.finfo(x.dtype).eps * (high - low)
        below, above = (jnp.where(side > 0, side, least) for side in (x - low, high - x))
        return jnp.log(below) - jnp.log(above)

    def from_logit(self, u: jax.Array) -> jax.Array:
        low, high = self._edges()
        # from the nearer edge, so that neither loses digits
        x = jnp.where(u < 0, low + (high - low) * jax.nn.sigmoid(u), high - (high - low) * jax.nn.sigmoid(-u))
        return jnp.clip(x, low, high)  # of rounding: sigmoid is never beyond


@dataclasses.dataclass(frozen=True)
class Normal(Marginals):
    """xᵢ ~ N(μᵢ, σᵢ²), independent.

    Args:
        mean: μ, a number for each component, in the units of x.
        std: σ, a number for each component, in the units of x.

    Raises:
        ConfigError: σ is not positive, or another number of them.

    Example:
        >>> Normal((0.0, 1.0), (1.0, 0.5)).log_prob(jnp.zeros(2)).shape
        ()
    """

    mean: Vector
    std: Vector

    def __post_init__(self) -> None:
        _check(mean=self.mean, std=self.std)
        require(min(self.std) > 0, "std > 0", self.std, "pass positive standard deviations")

    @property
    def size(self) -> int:
        return len(self.mean)

    def _moments(self) -> tuple[jax.Array, jax.Array]:
        return jnp.array(self.mean), jnp.array(self.std)

    def sample(self, key: jax.Array) -> jax.Array:
        mean, std = self._moments()
        return mean + std * jax.random.normal(key, (self.size,))

    def log_prob(self, x: jax.Array) -> jax.Array:
        mean, std = self._moments()
        return standard_log_prob((x - mean) / std) - jnp.log(std).sum()

    def to_logit(self, x: jax.Array) -> jax.Array:
        mean, std = self._moments()
        w = (x - mean) / std
        return log_ndtr(w) - log_ndtr(-w)

    def from_logit(self, u: jax.Array) -> jax.Array:
        mean, std = self._moments()
        w = log_normal_cdf_inverse(jax.nn.log_sigmoid(-jnp.abs(u)))
        return mean + std * jnp.where(u < 0, w, -w)


@dataclasses.dataclass(frozen=True)
class LogNormal(Marginals):
    """log xᵢ ~ N(μᵢ, σᵢ²), independent.

    Args:
        mean: μ of log x, a number for each component.
        std: σ of log x, a number for each component.

    Raises:
        ConfigError: σ is not positive, or another number of them.

    Example:
        >>> bool((LogNormal((0.0,), (1.0,)).sample(jax.random.key(0)) > 0).all())
        True
    """

    mean: Vector
    std: Vector

    def __post_init__(self) -> None:
        self._log  # noqa: B018 - made, and by that validated, now

    @functools.cached_property
    def _log(self) -> Normal:
        return Normal(self.mean, self.std)

    @property
    def size(self) -> int:
        return self._log.size

    def sample(self, key: jax.Array) -> jax.Array:
        return jnp.exp(self._log.sample(key))

    def log_prob(self, x: jax.Array) -> jax.Array:
        log_x = self._logarithm(x)
        return jnp.where(jnp.all(x > 0, axis=-1), self._log.log_prob(log_x) - log_x.sum(axis=-1), -jnp.inf)

    def to_logit(self, x: jax.Array) -> jax.Array:
        return self._log.to_logit(self._logarithm(x))

    def from_logit(self, u: jax.Array) -> jax.Array:
        return jnp.exp(self._log.from_logit(u))

    @staticmethod
    def _logarithm(x: jax.Array) -> jax.Array:
        return jnp.log(jnp.where(x > 0, x, 1.0))  # the branch that is not taken must have a gradient too


@dataclasses.dataclass(frozen=True)
class Product(Marginals):
    """p(x) = Π p_k(x_k): several priors, their components one after the other.

    Args:
        parts: the priors.

    Raises:
        ConfigError: there is none.

    Example:
        >>> Product((Uniform((-1.0,), (1.0,)), LogNormal((0.0,), (0.5,)))).size
        2
    """

    parts: tuple[Marginals, ...]

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "at least one prior", self.parts, "pass one")

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def sample(self, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(self.parts))
        return jnp.concatenate([part.sample(k) for part, k in zip(self.parts, keys, strict=True)])

    def log_prob(self, x: jax.Array) -> jax.Array:
        return sum((part.log_prob(piece) for part, piece in self._split(x)), start=jnp.zeros((), x.dtype))

    def to_logit(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([part.to_logit(piece) for part, piece in self._split(x)], axis=-1)

    def from_logit(self, u: jax.Array) -> jax.Array:
        return jnp.concatenate([part.from_logit(piece) for part, piece in self._split(u)], axis=-1)

    def _split(self, values: jax.Array) -> list[tuple[Marginals, jax.Array]]:
        ends = [sum(part.size for part in self.parts[: k + 1]) for k in range(len(self.parts) - 1)]
        return list(zip(self.parts, jnp.split(values, ends, axis=-1), strict=True))
