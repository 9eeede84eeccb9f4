"""Gaussian tasks whose exact posterior is a truncated Gaussian, or a mixture of two."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import ExactDraws, LogJoint, MarginalPrior
from vardax_flax.simulators.observe import fully_observed, gaussian_log_likelihood
from vardax_flax.simulators.priors import Uniform

NOISE_STD = math.sqrt(0.1)
WIDE, NARROW = 1.0, 0.1  # standard deviations of the mixture


def _truncated(key: jax.Array, mean: jax.Array, std: jax.Array, half_width: float, n: int) -> jax.Array:
    """n draws `(n, d)` of N(μ, σ²) in the box."""
    low, high = (-half_width - mean) / std, (half_width - mean) / std
    return mean + std * jax.random.truncated_normal(key, low, high, (n, *mean.shape))


@dataclasses.dataclass(frozen=True)
class GaussianLinearUniform(LogJoint, MarginalPrior, ExactDraws):
    """A location under Gaussian noise with a flat prior: θ ~ U(−1, 1)¹⁰, x ~ N(θ, 0.1 I).

    The posterior is N(x, 0.1 I) cut to the box (Lueckmann et al. 2021, *Benchmarking simulation-based inference*, T.2).

    Target θ `(10,)`, input x `(10,)`, without units; all is observed.

    Example:
        >>> GaussianLinearUniform().posterior_samples(jnp.zeros(10), jax.random.key(0), 1000).shape
        (1000, 10)
    """

    kind: ClassVar[str] = "gaussian_linear_uniform"

    @property
    def prior(self) -> Uniform:
        return Uniform.box(10, 1.0)

    def sample(self, key: jax.Array) -> Batch:
        key_theta, key_noise = jax.random.split(key)
        theta = self.prior.sample(key_theta)
        return fully_observed(theta + NOISE_STD * jax.random.normal(key_noise, (10,)), theta)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return self.prior.log_prob(x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        return gaussian_log_likelihood(element.input, element.mask, x, NOISE_STD)

    def posterior_samples(self, x: jax.Array, key: jax.Array, n: int) -> jax.Array:
        """Exact draws of p(θ | x) `(n, 10)`."""
        return _truncated(key, x, jnp.full_like(x, NOISE_STD), 1.0, n)


@dataclasses.dataclass(frozen=True)
class GaussianMixture(LogJoint, MarginalPrior, ExactDraws):
    """A location under noise of two widths: θ ~ U(−10, 10)², x ~ ½ N(θ, I) + ½ N(θ, 0.01 I).

    The posterior is the same mixture around x, cut to the box (Sisson et al. 2007; Lueckmann et al. 2021, T.7).

    Target θ `(2,)`, input x `(2,)`, without units; all is observed.

    Example:
        >>> GaussianMixture().posterior_samples(jnp.zeros(2), jax.random.key(0), 1000).shape
        (1000, 2)
    """

    kind: ClassVar[str] = "gaussian_mixture"

    @property
    def prior(self) -> Uniform:
        return Uniform.box(2, 10.0)

    def sample(self, key: jax.Array) -> Batch:
        key_theta, key_noise, key_width = jax.random.split(key, 3)
        theta = self.prior.sample(key_theta)
        std = jnp.where(jax.random.bernoulli(key_width), WIDE, NARROW).astype(theta.dtype)
        return fully_observed(theta + std * jax.random.normal(key_noise, (2,)), theta)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return self.prior.log_prob(x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        parts = jnp.stack([gaussian_log_likelihood(element.input, element.mask, x, std) for std in (WIDE, NARROW)])
        return jax.nn.logsumexp(parts) - math.log(2)

    def posterior_samples(self, x: jax.Array, key: jax.Array, n: int) -> jax.Array:
        """Exact draws of p(θ | x) `(n, 2)`: a component by its mass within the box, then a truncated Gaussian."""
        key_which, *keys = jax.random.split(key, 3)
        stds = jnp.array([WIDE, NARROW])
        mass = [jnp.log(norm.cdf((10 - x) / std) - norm.cdf((-10 - x) / std)).sum() for std in (WIDE, NARROW)]
        which = jax.random.categorical(key_which, jnp.stack(mass), shape=(n, 1))
        wide, narrow = (_truncated(k, x, jnp.full_like(x, std), 10.0, n) for k, std in zip(keys, stds, strict=True))
        return jnp.where(which == 0, wide, narrow)
