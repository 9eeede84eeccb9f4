"""What every encoder starts from: standardised fields of a batch, zero where nothing is observed."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.nn import Standardizer


def without_hidden(batch: Batch) -> Batch:
    """The batch without its target, and with harmless numbers (0, a noise scale of 1) where nothing is observed, which may be NaN."""
    seen = batch.mask != 0
    return batch._replace(
        target=None,
        input=jnp.where(seen, batch.input, 0),
        noise_scale=None if batch.noise_scale is None else jnp.where(seen, batch.noise_scale, 1),
        coords=None if batch.coords is None else jnp.where(seen[..., None], batch.coords, 0),
    )


def per_draw(center: jax.Array, rank: int, state_rank: int) -> jax.Array:
    """A state `(*batch, *state)` for each observation, with an axis for draws before those of the state where `rank` has one more axis."""
    return center if center.ndim == rank else jnp.expand_dims(center, center.ndim - state_rank)


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
        batch = without_hidden(batch)
        self.input.calibrate(batch.input, batch.mask)
        if self.background is not None:
            self.background.calibrate(batch.background)
        if self.noise is not None:
            self.noise.calibrate(jnp.log(batch.noise_scale), batch.mask)
        if self.coords is not None:
            self.coords.calibrate(batch.coords, jnp.broadcast_to(batch.mask[..., None], batch.coords.shape))

    def observed(self, batch: Batch) -> list[jax.Array]:
        """Observation-shaped channels: standardised values, mask, and, where there are such, log noise scale and each coordinate."""
        batch = without_hidden(batch)
        mask = batch.mask.astype(batch.input.dtype)
        channels = [self.input(batch.input), mask]
        if self.noise is not None:
            channels.append(self.noise(jnp.log(batch.noise_scale)))
        if self.coords is not None:
            coords = self.coords(batch.coords)
            channels += [coords[..., i] for i in range(coords.shape[-1])]
        # what is hidden is 0 after it is standardised too
        return [jnp.where(mask != 0, channel, 0) for channel in channels]

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
        return 2 + (self.noise is not None) + self.n_coords

    @property
    def n_coords(self) -> int:
        """Number of coordinates of an observation."""
        return 0 if self.coords is None else self.coords.mean[...].shape[-1]

    @property
    def features(self) -> int:
        """Size of `flat`."""
        background = 0 if self.background_shape is None else math.prod(self.background_shape)
        return self.n_channels * math.prod(self.obs_shape) + background


def point_inputs(spec: Batch) -> Inputs:
    """The views of one point of a set, whose first axis the points are; the background is not theirs.

    Raises:
        ConfigError: observations that are no set of numbers `(n,)` or vectors `(n, channels)`.
    """
    shape = tuple(spec.input.shape)
    require(len(shape) in (1, 2), "an observation of shape (n,) or (n, channels)", shape, "pick another encoder")
    return Inputs(jax.tree.map(lambda field: jax.ShapeDtypeStruct(field.shape[1:], field.dtype), points_of(spec)))


def points_of(batch: Batch) -> Batch:
    """What belongs to single points: everything but target and background."""
    return batch._replace(target=None, background=None)
