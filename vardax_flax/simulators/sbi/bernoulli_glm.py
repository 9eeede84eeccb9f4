"""A spiking neuron as a generalised linear model, seen through its sufficient statistics or as the raw spike train."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import LogJoint
from vardax_flax.ops.gaussian import log_prob
from vardax_flax.simulators.observe import fully_observed

BINS, LAGS = 100, 9


@functools.cache
def design_matrix() -> Any:
    """`(100, 10)`: a constant, and the stimulus (white noise, one draw) at lags 0 to 8."""
    stimulus = np.random.RandomState(42).randn(BINS)  # the legacy generator: the benchmark fixed its stimulus with it
    lagged = [np.concatenate([np.zeros(lag), stimulus[: BINS - lag]]) for lag in range(LAGS)]
    return np.stack([np.ones(BINS), *lagged], axis=1)


@functools.cache
def _prior_factor() -> Any:
    """Cholesky factor of the prior covariance P⁻¹, P = blockdiag(½, FᵀF), F = D² + diag(√(i / 9)): smooth filters."""
    difference = np.eye(LAGS) - np.eye(LAGS, k=-1)
    f = difference @ difference + np.diag(np.sqrt(np.arange(LAGS) / LAGS))
    covariance = np.zeros((1 + LAGS, 1 + LAGS))
    covariance[0, 0], covariance[1:, 1:] = 2.0, np.linalg.inv(f.T @ f)
    return np.linalg.cholesky(covariance)


def _log_prior(theta: jax.Array) -> jax.Array:
    return log_prob(theta, jnp.zeros_like(theta), jnp.asarray(_prior_factor(), theta.dtype))


def _draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    key_theta, key_spikes = jax.random.split(key)
    dtype = jnp.result_type(float)
    theta = jnp.asarray(_prior_factor(), dtype) @ jax.random.normal(key_theta, (1 + LAGS,))
    rate = jax.nn.sigmoid(jnp.asarray(design_matrix(), dtype) @ theta)
    return theta, jax.random.bernoulli(key_spikes, rate).astype(dtype)


def _log_normaliser(theta: jax.Array) -> jax.Array:
    """Σᵢ log(1 + e^{vᵢᵀθ})."""
    return jax.nn.softplus(jnp.asarray(design_matrix(), theta.dtype) @ theta).sum()


@dataclasses.dataclass(frozen=True)
class BernoulliGLM(LogJoint):
    """Sufficient statistics of a spike train: yᵢ ~ Bernoulli(sigmoid(vᵢᵀθ)), x = Vᵀy, θ ~ N(0, P⁻¹).

    V holds a constant and the stimulus at lags 0 to 8; x is the number of spikes and the spike-triggered sum of the stimulus
    (Lueckmann et al. 2017; Lueckmann et al. 2021, T.5).

    Target θ `(10,)`, input x `(10,)`, without units; all is observed.

    Example:
        >>> BernoulliGLM().sample(jax.random.key(0)).input.shape
        (10,)
    """

    kind: ClassVar[str] = "bernoulli_glm"

    def sample(self, key: jax.Array) -> Batch:
        theta, spikes = _draw(key)
        return fully_observed(spikes @ jnp.asarray(design_matrix(), spikes.dtype), theta)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return _log_prior(x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        """xᵀθ − Σᵢ log(1 + e^{vᵢᵀθ}), without the number of spike trains that have these statistics, which θ does not change."""
        return element.input @ x - _log_normaliser(x)


@dataclasses.dataclass(frozen=True)
class BernoulliGLMRaw(LogJoint):
    """`BernoulliGLM` with the spike train y itself as the input, 0 or 1 in each of 100 bins (Lueckmann et al. 2021, T.6).

    Target θ `(10,)`, input y `(100,)`, without units; all is observed.

    Example:
        >>> BernoulliGLMRaw().sample(jax.random.key(0)).input.shape
        (100,)
    """

    kind: ClassVar[str] = "bernoulli_glm_raw"

    def sample(self, key: jax.Array) -> Batch:
        theta, spikes = _draw(key)
        return fully_observed(spikes, theta)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return _log_prior(x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        """Σᵢ yᵢ vᵢᵀθ − log(1 + e^{vᵢᵀθ})."""
        return element.input @ (jnp.asarray(design_matrix(), x.dtype) @ x) - _log_normaliser(x)
