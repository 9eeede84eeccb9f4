"""What the benchmark tasks share: priors over a box, log-normal priors, and an element in which all is observed."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from vardax_flax.core.batch import Batch


def whole(x: jax.Array, theta: jax.Array) -> Batch:
    """The element of a fully observed x."""
    return Batch(input=x, mask=jnp.ones_like(x), target=theta)


def box_log_prob(theta: jax.Array, half_width: float) -> jax.Array:
    """log U(θ; [−w, w]^d): −∞ outside."""
    return jnp.where(jnp.all(jnp.abs(theta) <= half_width), -theta.size * math.log(2 * half_width), -jnp.inf)


def draw_box(key: jax.Array, dim: int, half_width: float) -> jax.Array:
    """θ ~ U([−w, w]^d)."""
    return jax.random.uniform(key, (dim,), minval=-half_width, maxval=half_width)


def normal_log_prob(x: jax.Array, mean: jax.Array | float, std: jax.Array | float) -> jax.Array:
    """Σ log N(xᵢ; μᵢ, σᵢ²), in nats."""
    return jnp.sum(-0.5 * jnp.square((x - mean) / std) - jnp.log(std) - 0.5 * math.log(2 * math.pi))


def log_normal_log_prob(x: jax.Array, mean: jax.Array, std: jax.Array | float) -> jax.Array:
    """Σ log LogNormal(xᵢ; μᵢ, σᵢ²), −∞ where any xᵢ ≤ 0."""
    positive = jnp.all(x > 0)
    log_x = jnp.log(jnp.where(x > 0, x, 1.0))  # the branch that is not taken must have a gradient too
    return jnp.where(positive, normal_log_prob(log_x, mean, std) - log_x.sum(), -jnp.inf)
