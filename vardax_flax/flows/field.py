"""Conditional Gaussian of a field: a mean and a scale at every pixel, and one spectrum for all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.flows.gaussian import MAX_LOG_SCALE
from vardax_flax.nn import FieldNet, UNetConfig, soft_clip
from vardax_flax.ops.half_plane import twins

SPEED = 10.0  # of the spectrum, whose logarithm has further to go than the small steps of an optimiser reach


class FieldGaussian(nnx.Module):
    """z = F⁻¹ P^{−½} F e^{−s(c)} (x − μ(c)): x | c ~ N(μ, e^s F⁻¹ P F e^s) when z ~ N(0, I), F the Fourier transform over the grid.

    Mean μ and log-scale s are fields from a U-Net of the context; the spectrum P of what the scale leaves is the same for every context.
    On a grid with walls P = 1: independent pixels. |s| ≤ 8, smoothly.

    Args:
        config: of the U-Net; its grid is that of the state.
        dim: size of the state, `(*grid, channels)` flat.
        context_features: size of the context.

    Example:
        >>> gaussian = FieldGaussian(UNetConfig(grid=(64, 64)), 4096, 2 * 4096, rngs=nnx.Rngs(0))
        >>> z, log_det = gaussian.forward(x, context)       # (*batch, 4096), (*batch,)
    """

    def __init__(self, config: UNetConfig, dim: int, context_features: int, *, rngs: nnx.Rngs) -> None:
        self.net = FieldNet(config, dim, context_features, outputs=2, rngs=rngs)
        self.grid, self.dim = config.grid, dim
        self.half = (*config.grid[:-1], config.grid[-1] // 2 + 1, self.net.state_channels)
        self.spectrum = nnx.Param(jnp.zeros(self.half)) if config.periodic else None

    def parameters(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """μ and s, each `(*batch, dim)`."""
        mean, log_scale = jnp.split(self.net(jnp.zeros((0,), context.dtype), context), 2, axis=-1)
        return mean, soft_clip(log_scale, MAX_LOG_SCALE)

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z `(*batch, dim)` and log |dz/dx| `(*batch,)`."""
        mean, log_scale = self.parameters(context)
        z, log_det = self._filter((x - mean) * jnp.exp(-log_scale), -0.5)
        return z, log_det - log_scale.sum(axis=-1)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x `(*batch, dim)` and log |dx/dz| `(*batch,)`."""
        mean, log_scale = self.parameters(context)
        colored, log_det = self._filter(z, 0.5)
        return mean + jnp.exp(log_scale) * colored, log_det + log_scale.sum(axis=-1)

    def _filter(self, r: jax.Array, power: float) -> tuple[jax.Array, jax.Array]:
        """F⁻¹ P^power F r, and the log-determinant of that."""
        if self.spectrum is None:
            return r, jnp.zeros((), r.dtype)
        log_power = power * SPEED * self._even(self.spectrum[...])
        axes = tuple(range(-len(self.grid) - 1, -1))
        field = r.reshape(*r.shape[:-1], *self.grid, -1)
        filtered = jnp.fft.irfftn(jnp.exp(log_power) * jnp.fft.rfftn(field, axes=axes), s=self.grid, axes=axes)
        return filtered.reshape(r.shape), (self._twins() * log_power).sum()

    def _self_conjugate(self) -> np.ndarray:
        """Columns of the half plane that hold k and −k both, `(n // 2 + 1, 1)`."""
        return self._twins() == 1

    def _twins(self) -> np.ndarray:
        """How often each wave number of the half plane stands in the whole one."""
        return twins(self.grid[-1])[:, None]

    def _even(self, spectrum: jax.Array) -> jax.Array:
        """The same number at k and −k, or the filtered field would not be real."""
        mirrored = spectrum
        for axis in range(len(self.grid) - 1):
            mirrored = jnp.roll(jnp.flip(mirrored, axis), 1, axis)
        return jnp.where(self._self_conjugate(), 0.5 * (spectrum + mirrored), spectrum)
