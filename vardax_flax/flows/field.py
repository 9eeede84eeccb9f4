"""Conditional Gaussian of a field: a mean and scales of long and short waves at every pixel, and one spectrum for all."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.config import require
from vardax_flax.flows.gaussian import MAX_LOG_SCALE
from vardax_flax.nn import FieldNet, UNetConfig, soft_clip
from vardax_flax.ops.half_plane import twins
from vardax_flax.ops.precision import full_precision

SPEED = 10.0  # of the spectrum, whose logarithm has further to go than the small steps of an optimiser reach


class FieldGaussian(nnx.Module):
    """x = μ(c) + e^{s(c)} A₁ … A_L F⁻¹ P^{½} F z, F the Fourier transform over the grid: x | c is normal when z ~ N(0, I).

    The mean μ and the log-scale s are fields from a U-Net of the context; the spectrum P of what the scales leave is the same for every
    context. A_l = I + U_l (e^{s_l(c)} − 1) U_lᵀ scales long waves, those that live on a grid 2^l times coarser in each direction: the
    columns of U_l are orthonormal, its interpolation. With it the waves that are left where little was observed can be longer than
    elsewhere. On a grid with walls P = 1 and long waves are averages of cells. Each log-scale stays within ± 8, smoothly.

    Args:
        config: of the U-Net; its grid is that of the state.
        dim: size of the state, `(*grid, channels)` flat.
        context_features: size of the context.
        long_waves: L, how many coarser grids have a scale of their own; None is none.

    Raises:
        ConfigError: a grid that cannot be halved so often.

    Example:
        >>> gaussian = FieldGaussian(UNetConfig(grid=(64, 64)), 4096, 2 * 4096, rngs=nnx.Rngs(0))
        >>> z, log_det = gaussian.forward(x, context)       # (*batch, 4096), (*batch,)
    """

    def __init__(self, config: UNetConfig, dim: int, context_features: int, *, long_waves: int | None = None, rngs: nnx.Rngs) -> None:
        check_long_waves(long_waves, config)
        self.levels = long_waves or 0
        self.net = FieldNet(config, dim, context_features, outputs=2 + self.levels, rngs=rngs)
        self.grid, self.dim, self.periodic = config.grid, dim, config.periodic
        self.half = (*config.grid[:-1], config.grid[-1] // 2 + 1, self.net.state_channels)
        self.spectrum = nnx.Param(jnp.zeros(self.half)) if config.periodic else None

    def parameters(self, context: jax.Array) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """μ and s, each `(*batch, dim)`, and s_l `(*batch, *coarse grid, channels)`, from the finest to the coarsest."""
        mean, *scales = jnp.split(self.net(jnp.zeros((0,), context.dtype), context), 2 + self.levels, axis=-1)
        per_level = 2.0 ** (-0.5 * len(self.grid))  # what interpolation makes of a constant
        fields = [self._onto_coarse(self._field(scale), level) * per_level**level for level, scale in enumerate(scales)]
        log_scale, *coarse = (soft_clip(field, MAX_LOG_SCALE) for field in fields)
        return mean, log_scale.reshape(mean.shape), coarse

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z `(*batch, dim)` and log |dz/dx| `(*batch,)`."""
        mean, log_scale, coarse = self.parameters(context)
        r = (x - mean) * jnp.exp(-log_scale)
        for level, scale in enumerate(coarse, 1):
            r = self._scale_long_waves(r, -scale, level)
        z, log_det = self._filter(r, -0.5)
        return z, log_det - _total(log_scale, coarse)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x `(*batch, dim)` and log |dx/dz| `(*batch,)`."""
        mean, log_scale, coarse = self.parameters(context)
        r, log_det = self._filter(z, 0.5)
        for level, scale in reversed(list(enumerate(coarse, 1))):
            r = self._scale_long_waves(r, scale, level)
        return mean + jnp.exp(log_scale) * r, log_det + _total(log_scale, coarse)

    def _field(self, flat: jax.Array) -> jax.Array:
        return flat.reshape(*flat.shape[:-1], *self.grid, -1)

    def _scale_long_waves(self, r: jax.Array, log_scale: jax.Array, level: int) -> jax.Array:
        """A_l r."""
        change = jnp.expm1(log_scale) * self._onto_coarse(self._field(r), level)
        change = self._along_axes(change, [basis.T for basis in self._interpolations(level)])
        return r + change.reshape(*change.shape[: -len(self.grid) - 1], self.dim)

    def _onto_coarse(self, field: jax.Array, level: int) -> jax.Array:
        """U_lᵀ of a field `(*batch, *grid, channels)`."""
        return self._along_axes(field, self._interpolations(level)) if level else field

    def _interpolations(self, level: int) -> list[np.ndarray]:
        return [interpolation(n, n >> level, self.periodic) for n in self.grid]

    @full_precision
    def _along_axes(self, field: jax.Array, matrices: list[np.ndarray]) -> jax.Array:
        for axis, matrix in enumerate(matrices, field.ndim - 1 - len(matrices)):
            field = jnp.moveaxis(jnp.tensordot(field, jnp.asarray(matrix, field.dtype), axes=(axis, 0)), -1, axis)
        return field

    def _filter(self, r: jax.Array, power: float) -> tuple[jax.Array, jax.Array]:
        """F⁻¹ P^power F r, and the log-determinant of that."""
        if self.spectrum is None:
            return r, jnp.zeros((), r.dtype)
        log_power = power * SPEED * self._even(self.spectrum[...])
        axes = tuple(range(-len(self.grid) - 1, -1))
        field = self._field(r)
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


@functools.cache
def interpolation(n: int, m: int, periodic: bool) -> np.ndarray:
    """From m points to n, `(n, m)` with orthonormal columns: trigonometric on a periodic axis, else each point to its n / m neighbours.

    Example:
        >>> interpolation(4, 2, False)[:, 0]
        array([0.70710678, 0.70710678, 0.        , 0.        ])
    """
    if not periodic:
        return np.kron(np.eye(m), np.ones((n // m, 1))) / np.sqrt(n // m)
    away = np.arange(n)[:, None] / n - np.arange(m) / m
    waves = np.ones_like(away) + 2 * sum(np.cos(2 * np.pi * k * away) for k in range(1, (m - 1) // 2 + 1))
    if m % 2 == 0:  # the shortest wave of the coarse grid has no phase there, two halves on the fine one
        waves = waves + np.sqrt(2) * np.cos(np.pi * m * away)
    return waves / np.sqrt(n * m)


def check_long_waves(number: int | None, config: UNetConfig | None) -> None:
    """Whether the grid of a network can be halved so often.

    Raises:
        ConfigError: it cannot, or there is no such network.
    """
    if number is None:
        return
    require(number >= 1, "long_waves >= 1 or None", number, "pass a positive number, or leave it out")
    require(config is not None, "a `net` for long_waves", None, "pass a UNetConfig, or leave long_waves out")
    assert config is not None
    halved = all(size % 2**number == 0 for size in config.grid)
    require(halved, f"a grid divisible by {2**number} for long_waves={number}", config.grid, "pass fewer, or pad the field")


def _total(log_scale: jax.Array, coarse: list[jax.Array]) -> jax.Array:
    lead = log_scale.ndim - 1
    return sum((scale.sum(axis=tuple(range(lead, scale.ndim))) for scale in coarse), log_scale.sum(axis=-1))
