"""Standardisation whose statistics are learned from the stream and stored in the model, outside the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class Statistic(nnx.Variable):
    """A stored number that is not trained by gradient."""


class Standardizer(nnx.Module):
    """z = (x − mean) / std per component, (*batch, *shape) → the same shape.

    Components that never vary, to rounding, keep std 1, so that they are centred and nothing is divided by zero.

    Args:
        shape: of one element.

    Example:
        >>> standardize = Standardizer((3,))
        >>> standardize.calibrate(x); z = standardize(x)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean = Statistic(jnp.zeros(shape))
        self.std = Statistic(jnp.ones(shape))

    def calibrate(self, x: jax.Array, mask: jax.Array | None = None) -> None:
        """Set mean and std from a batch `(n, *shape)`, counting only places where mask is 1."""
        self.mean[...], self.std[...] = _mean_and_std(x, mask)

    def __call__(self, x: jax.Array) -> jax.Array:
        return (x - self.mean[...]) / self.std[...]

    def inverse(self, z: jax.Array) -> jax.Array:
        """x = mean + std · z."""
        return self.mean[...] + self.std[...] * z

    def log_det(self) -> jax.Array:
        """log |dz/dx| = −Σ log std."""
        return -jnp.log(self.std[...]).sum()


@jax.jit  # a dozen small programs otherwise
def _mean_and_std(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    weight = jnp.ones_like(x) if mask is None else mask.astype(x.dtype)
    count = jnp.maximum(weight.sum(axis=0), 1)
    x = jnp.where(weight > 0, x, 0)  # what is hidden may be NaN
    mean = x.sum(axis=0) / count
    mean = mean + ((x - mean) * weight).sum(axis=0) / count  # corrects the rounding of a long sum
    variance = (jnp.square(x - mean) * weight).sum(axis=0) / count
    return mean, jnp.where(variance > 1e-12 * jnp.square(mean), jnp.sqrt(variance), 1)
