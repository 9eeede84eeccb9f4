"""What every encoder starts from: standardised fields of a batch, zero where nothing is observed."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.nn import Standardizer


class Inputs(nnx.Module):
    """Standardised, masked views of (input, mask[, background][, noise_scale][, coords]).

    Args:
        spec: shapes of one element.

    Example:
        >>> inputs = Inputs(simulator.spec); inputs.calibrate(batch)
        >>> inputs.flat(batch).shape
        (256, 63)
    """

    def __init__(self, spec: Batch) -> None:
        self.obs_shape = tuple(spec.input.shape)
        self.background_shape = None if spec.background is None else tuple(spec.background.shape)
        self.input = Standardizer(self.obs_shape)
        self.background = None if spec.background is None else Standardizer(self.background_shape or ())
        self.noise = None if spec.noise_scale is None else Standardizer(tuple(spec.noise_scale.shape))
        self.coords = None if spec.coords is None else Standardizer(tuple(spec.coords.shape))

    def calibrate(self, batch: Batch) -> None:
        """Learn means and standard deviations from a batch with one leading axis, counting observed values only."""
        self.input.calibrate(batch.input, batch.mask)
        if self.background is not None:
            self.background.calibrate(batch.background)
        if self.noise is not None:
            self.noise.calibrate(jnp.log(_safe(batch.noise_scale, batch.mask)), batch.mask)
        if self.coords is not None:
            self.coords.calibrate(batch.coords, jnp.broadcast_to(batch.mask[..., None], batch.coords.shape))

    def observed(self, batch: Batch) -> list[jax.Array]:
        """Observation-shaped channels: standardised values, mask, and, where there are such, log noise scale and each coordinate."""
        mask = batch.mask.astype(batch.input.dtype)
        observed = mask != 0  # selected, not multiplied: what is hidden may be NaN
        channels = [jnp.where(observed, self.input(batch.input), 0), mask]
        if self.noise is not None:
            channels.append(jnp.where(observed, self.noise(jnp.log(_safe(batch.noise_scale, mask))), 0))
        if self.coords is not None:
            coords = jnp.where(observed[..., None], self.coords(batch.coords), 0)
            channels += [coords[..., i] for i in range(coords.shape[-1])]
        return channels

    def flat(self, batch: Batch) -> jax.Array:
        """Everything as one vector `(*batch, features)`."""
        lead = batch.input.ndim - len(self.obs_shape)
        parts = self.observed(batch)
        if self.background is not None:
            parts.append(self.background(batch.background))
        return jnp.concatenate([part.reshape(*part.shape[:lead], -1) for part in parts], axis=-1)

    @property
    def n_channels(self) -> int:
        """Number of observation-shaped channels of `observed`."""
        coords = 0 if self.coords is None else self.coords.mean[...].shape[-1]
        return 2 + (self.noise is not None) + coords

    @property
    def features(self) -> int:
        """Size of `flat`."""
        background = 0 if self.background_shape is None else math.prod(self.background_shape)
        return self.n_channels * math.prod(self.obs_shape) + background


def _safe(noise_scale: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask != 0, noise_scale, 1)
