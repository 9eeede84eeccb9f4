"""What an instrument makes of a state: fewer times and places, Gaussian noise, values missing at random.

Symbols: y the observation, h the noise-free observation, σ the noise standard deviation.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require


def check_noise(noise_std: float, missing_rate: float) -> None:
    """Validate what every observing simulator has.

    Raises:
        ConfigError: `noise_std` is not positive and finite, or `missing_rate` is outside [0, 1).
    """
    require(0 < noise_std < math.inf, "noise_std > 0", noise_std, "pass a positive standard deviation")
    check_missing_rate(missing_rate)


def check_missing_rate(missing_rate: float) -> None:
    """Validate the probability that a value is not observed.

    Raises:
        ConfigError: `missing_rate` is outside [0, 1).
    """
    require(0 <= missing_rate < 1, "missing_rate in [0, 1)", missing_rate, "pass the fraction of values that is not observed")


def subsample(states: jax.Array, every_step: int, every_site: int = 1) -> jax.Array:
    """The states that are observed: times s, 2s, … (nothing at time 0) of the sites 0, k, 2k, …

    Args:
        states: trajectory `(steps + 1, sites)`, its initial state first.
        every_step: s, steps between two observed times.
        every_site: k, sites between two observed sites.

    Returns:
        `(steps // every_step, ceil(sites / every_site))`.

    Example:
        >>> subsample(jnp.zeros((11, 40)), every_step=5, every_site=2).shape
        (2, 20)
    """
    return states[every_step::every_step, ::every_site]


def observe(key: jax.Array, clean: jax.Array, noise_std: float | jax.Array, missing_rate: float) -> tuple[jax.Array, jax.Array]:
    """Add Gaussian noise, then lose values at random: y = mask · (h + σ ε), ε ~ N(0, I), mask ~ Bernoulli(1 − missing_rate).

    Args:
        key: random key.
        clean: h `(*obs,)`.
        noise_std: σ, in the units of h; scalar or broadcastable to `(*obs,)`.
        missing_rate: probability in [0, 1) that a value is not observed, independently of all else.

    Returns:
        The observation, 0 where not observed, and its mask (1 observed, 0 not), both `(*obs,)`.

    Example:
        >>> y, mask = observe(jax.random.key(0), jnp.zeros((10, 3)), noise_std=1.0, missing_rate=0.5)
    """
    key_noise, key_mask = jax.random.split(key)
    noisy = clean + noise_std * jax.random.normal(key_noise, clean.shape, clean.dtype)
    return lose(key_mask, noisy, missing_rate)


def lose(key: jax.Array, values: jax.Array, missing_rate: float) -> tuple[jax.Array, jax.Array]:
    """Lose values at random: 0 with probability `missing_rate`.

    Args:
        key: random key.
        values: `(*obs,)`.
        missing_rate: probability in [0, 1).

    Returns:
        The values, 0 where lost, and the mask (1 kept, 0 lost), both `(*obs,)`.

    Example:
        >>> y, mask = lose(jax.random.key(0), jnp.ones(10), 0.5)
    """
    keep = jax.random.bernoulli(key, 1 - missing_rate, values.shape) if missing_rate > 0 else jnp.ones(values.shape, bool)
    return jnp.where(keep, values, 0), keep.astype(values.dtype)


def gaussian_log_likelihood(y: jax.Array, mask: jax.Array, clean: jax.Array, noise_std: float | jax.Array) -> jax.Array:
    """Log density of the observed values under independent Gaussian noise, in nats.

    log p(y | h) = Σ_{i observed} [−½ ((yᵢ − hᵢ)/σ)² − log σ − ½ log 2π]

    Args:
        y: observation `(*obs,)`; ignored where `mask` is 0.
        mask: 1 observed, 0 not, `(*obs,)`.
        clean: h `(*obs,)`.
        noise_std: σ; scalar or broadcastable to `(*obs,)`.

    Returns:
        Scalar, the sum over all axes.

    Example:
        >>> float(gaussian_log_likelihood(jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.zeros(2), 1.0))
        -0.9189385
    """
    observed = mask > 0
    # the inner `where` keeps a NaN at an unobserved place out of the value and out of the gradient
    white = jnp.where(observed, y - clean, 0) / noise_std
    terms = -0.5 * white**2 - jnp.log(noise_std) - 0.5 * math.log(2 * math.pi)
    return jnp.sum(jnp.where(observed, terms, 0))


def fully_observed(y: jax.Array, x: jax.Array) -> Batch:
    """The element of a state x `(*state)` all of whose observation y `(*obs)` is there.

    Example:
        >>> fully_observed(jnp.zeros(3), jnp.ones(2)).mask
        Array([1., 1., 1.], dtype=float32)
    """
    return Batch(input=y, mask=jnp.ones_like(y), target=x)
