"""Simple likelihood, complex posterior: four points of a Gaussian whose posterior has four modes; with distractors or without."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import LogJoint, MarginalPrior
from vardax_flax.simulators.observe import fully_observed
from vardax_flax.simulators.priors import Uniform

DISTRACTORS, COMPONENTS = 92, 20
JITTER = 1e-6
PRIOR = Uniform.box(5, 3.0)


def _scales(theta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The Cholesky factor of S = [[s₁², ρ s₁ s₂], [ρ s₁ s₂, s₂²]] + 10⁻⁶ I as (L₁₁, L₂₁, L₂₂)."""
    s1, s2, rho = jnp.square(theta[2]), jnp.square(theta[3]), jnp.tanh(theta[4])
    l11 = jnp.sqrt(jnp.square(s1) + JITTER)
    l21 = rho * s1 * s2 / l11
    # 1 − tanh² as sech²: nothing cancels where ρ is near ±1
    rest = jnp.square(s2) * (jnp.square(1 / jnp.cosh(theta[4])) + jnp.square(rho) * JITTER / jnp.square(l11))
    return l11, l21, jnp.sqrt(rest + JITTER)


def _points(theta: jax.Array, key: jax.Array) -> jax.Array:
    l11, l21, l22 = _scales(theta)
    e = jax.random.normal(key, (4, 2))
    return (theta[:2] + jnp.stack([l11 * e[:, 0], l21 * e[:, 0] + l22 * e[:, 1]], axis=-1)).ravel()


def _log_likelihood(theta: jax.Array, x: jax.Array) -> jax.Array:
    l11, l21, l22 = _scales(theta)
    d = x.reshape(4, 2) - theta[:2]
    a = d[:, 0] / l11
    b = (d[:, 1] - l21 * a) / l22
    return -0.5 * (jnp.square(a) + jnp.square(b)).sum() - 4 * (jnp.log(l11) + jnp.log(l22) + math.log(2 * math.pi))


@dataclasses.dataclass(frozen=True)
class SLCP(LogJoint, MarginalPrior):
    """Four draws of a Gaussian: θ ~ U(−3, 3)⁵, x = 4 × N((θ₁, θ₂), S(θ₃, θ₄, θ₅)), s₁ = θ₃², s₂ = θ₄², ρ = tanh θ₅.

    The likelihood does not see the signs of θ₃ and θ₄: four modes with sharp edges
    (Papamakarios, Sterratt, Murray 2019; Lueckmann et al. 2021, T.3).

    Target θ `(5,)`, input x `(8,)`, without units; all is observed.

    Example:
        >>> SLCP().sample(jax.random.key(0)).input.shape
        (8,)
    """

    kind: ClassVar[str] = "slcp"

    @property
    def prior(self) -> Uniform:
        return PRIOR

    def sample(self, key: jax.Array) -> Batch:
        key_theta, key_noise = jax.random.split(key)
        theta = self.prior.sample(key_theta)
        return fully_observed(_points(theta, key_noise), theta)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return self.prior.log_prob(x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        return _log_likelihood(x, element.input)


@functools.cache
def _distractors() -> tuple[Any, Any, Any]:
    """Centres and widths `(20, 92)` of the mixture, and where in the input each of the 100 numbers stands."""
    rng = np.random.default_rng(0)
    centres = 15 * rng.standard_normal((COMPONENTS, DISTRACTORS))
    widths = 3 * np.exp(0.5 * rng.standard_normal((COMPONENTS, DISTRACTORS)))
    return centres, widths, rng.permutation(8 + DISTRACTORS).astype(np.int32)


def _places() -> Any:
    """Where in the input the eight informative numbers stand."""
    return np.argsort(_distractors()[2])[:8].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class SLCPDistractors(LogJoint, MarginalPrior):
    """`SLCP` hidden among 92 numbers that say nothing about θ, all 100 in a fixed random order.

    The distractors are one draw of a fixed mixture of 20 Student-t₂ distributions in 92 dimensions, so they are heavy-tailed and
    dependent on each other (Lueckmann et al. 2021, T.4, whose centres and widths these are not). The posterior is that of `SLCP`.

    Target θ `(5,)`, input x `(100,)`, without units; all is observed.

    Example:
        >>> SLCPDistractors().informative(element.input).shape
        (8,)
    """

    kind: ClassVar[str] = "slcp_distractors"

    @property
    def prior(self) -> Uniform:
        return PRIOR

    def sample(self, key: jax.Array) -> Batch:
        centres, widths, order = _distractors()
        key_theta, key_noise, key_which, key_normal, key_chi = jax.random.split(key, 5)
        theta = self.prior.sample(key_theta)
        which = jax.random.randint(key_which, (), 0, COMPONENTS, dtype=jnp.int32)
        # Student-t with two degrees of freedom: a normal over √(χ²₂ / 2), and χ²₂ / 2 is a standard exponential
        tail = jax.lax.rsqrt(jax.random.exponential(key_chi))
        noise = tail * jax.random.normal(key_normal, (DISTRACTORS,))
        distractors = jnp.asarray(centres, theta.dtype)[which] + jnp.asarray(widths, theta.dtype)[which] * noise
        return fully_observed(jnp.concatenate([_points(theta, key_noise), distractors])[order], theta)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return self.prior.log_prob(x)

    def informative(self, x: jax.Array) -> jax.Array:
        """The eight numbers `(8,)` of an input that depend on θ."""
        return x[_places()]

    def hide(self, x: jax.Array, points: jax.Array) -> jax.Array:
        """An input x `(100,)` with these eight informative numbers in place of its own."""
        return x.at[_places()].set(points)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        """log p of the informative numbers: the density of the others does not depend on θ, and is left out."""
        return _log_likelihood(x, self.informative(element.input))
