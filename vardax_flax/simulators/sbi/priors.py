"""What the benchmark tasks share: the density of Gaussian noise, and an element in which all is observed."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from vardax_flax.core.batch import Batch


def whole(x: jax.Array, theta: jax.Array) -> Batch:
    """The element of a fully observed x."""
    return Batch(input=x, mask=jnp.ones_like(x), target=theta)


def normal_log_prob(x: jax.Array, mean: jax.Array | float, std: jax.Array | float) -> jax.Array:
    """Σ log N(xᵢ; μᵢ, σᵢ²), in nats."""
    return jnp.sum(-0.5 * jnp.square((x - mean) / std) - jnp.log(std) - 0.5 * math.log(2 * math.pi))
