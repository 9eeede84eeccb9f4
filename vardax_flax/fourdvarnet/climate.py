"""A Gaussian analysis of fields before the learned descent, by a covariance that is learned from simulations.

Stationary fields on a periodic square have a covariance that the Fourier transform makes a small matrix for each wave number, days by days:
a few hundred simulations are enough to know it. What is left to the descent is how the posterior departs from a Gaussian one.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.encoders.control import POWER, SHARE
from vardax_flax.fourdvarnet.layout import Layout
from vardax_flax.nn import Statistic
from vardax_flax.ops.blocks import map_blocks
from vardax_flax.ops.half_plane import twins
from vardax_flax.ops.linear import conjugate_gradient
from vardax_flax.ops.precision import full_precision

LEAST = 2  # windows for each row of the covariance of a wave number: with a third of the error's variance its own
BLOCK = 16  # windows at once


class ClimateAnalysis(nnx.Module):
    """x = m + F⁻¹ C(k)^½ w, w from so many conjugate gradients of ½‖w‖² + ½‖(x − y) / r‖²: optimal interpolation in space and time.

    m, C(k) `(days, days)` of each wave number and the noise r are learned from simulations; a few hundred suffice. The gradients are
    preconditioned by the curvature that an average window has along each eigenvector of C(k). Their number is fixed, so that the cost is
    known: `python -m eval.solver` shows what more of them would gain.

    Reference: Bretherton, Davis & Fandry 1976, *A technique for objective analysis*; Courtier et al. 1994.

    Args:
        state: `(days, height, width)`.
        steps: of conjugate gradients.

    Example:
        >>> analysis = ClimateConfig(steps=48).build(Layout((15, 64, 64), "space", periodic=True))
        >>> analysis.calibrate(batch); x = analysis(batch)                  # (B, 15, 64, 64)
    """

    def __init__(self, state: tuple[int, ...], steps: int) -> None:
        self.state, self.steps = state, steps
        days, height, width = state
        self.mean = Statistic(jnp.zeros(()))
        self.noise_std = Statistic(jnp.ones(()))
        self.density = Statistic(jnp.ones(()))
        self.root = Statistic(jnp.zeros((height, width // 2 + 1, days, days, 2)))  # real and imaginary part
        self.variance = Statistic(jnp.zeros((height, width // 2 + 1, days)))

    def calibrate(self, batch: Batch) -> None:
        """Learn mean, covariance, noise and share of observed pixels from simulations.

        Raises:
            ConfigError: fewer than two windows for each day, observations without noise.
        """
        x = np.asarray(batch.target)
        seen, noise = np.asarray(batch.mask) > 0, np.asarray(batch.input) - x
        mean = x.mean()
        require(len(x) >= LEAST * self.state[0], f"at least {LEAST} windows a day, {LEAST * self.state[0]}", len(x), "calibrate with more")
        noise_std = float(np.sqrt(np.square(noise[seen]).mean())) if seen.any() else 0.0
        require(noise_std > 0, "observations with noise to calibrate with", f"a standard deviation of {noise_std}", "add some")
        root, variance = spectral_root(x - mean)
        self.mean[...] = jnp.asarray(mean, x.dtype)
        self.noise_std[...] = jnp.asarray(noise_std, x.dtype)
        self.density[...] = jnp.asarray(seen.mean(), x.dtype)
        self.root[...] = jnp.asarray(np.stack([root.real, root.imag], axis=-1), x.dtype)
        self.variance[...] = jnp.asarray(variance, x.dtype)

    def __call__(self, batch: Batch, steps: int | None = None) -> jax.Array:
        """The analyses `(*batch, days, height, width)`, in physical units; of another number of `steps`, if that is given."""
        lead = batch.input.shape[:-3]
        rows = jax.tree.map(lambda a: a.reshape(-1, *self.state), (batch.input, batch.mask))
        return map_blocks(jax.vmap(lambda row: self._one(row[0], row[1], steps or self.steps)), rows, BLOCK).reshape(*lead, *self.state)

    @full_precision
    def _one(self, y: jax.Array, mask: jax.Array, steps: int) -> jax.Array:
        start = jnp.zeros((*self.root.shape[:3], 2), y.dtype)
        pull = jax.linear_transpose(self._field, start)
        innovation = jnp.where(mask > 0, y - self.mean[...], 0)
        weight = mask / jnp.square(self.noise_std[...])
        curvature = SHARE * self.density[...] / jnp.square(self.noise_std[...]) * self.variance[...]
        w = conjugate_gradient(
            lambda w: w + pull(weight * self._field(w))[0], pull(weight * innovation)[0], steps,
            preconditioner=jnp.broadcast_to(((1 + curvature) ** -POWER)[..., None], start.shape),
        )  # fmt: skip
        return self.mean[...] + self._field(w)

    def _field(self, w: jax.Array) -> jax.Array:
        """F⁻¹ C^½ w `(days, height, width)` of real and imaginary parts `(height, width // 2 + 1, days, 2)`."""
        root, w = (jax.lax.complex(a[..., 0], a[..., 1]) for a in (self.root[...], w))
        return jnp.fft.irfft2(jnp.moveaxis(jnp.einsum("abts,abs->abt", root, w), -1, 0), s=self.state[1:])


def spectral_root(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C(k)^½ `(height, width // 2 + 1, days, days)` such that F⁻¹ C^½ w has the covariance of x for white w, and the variance of a
    coefficient along each of its columns, in the units of x.

    Args:
        x: fields around their mean `(n, days, height, width)`.
    """
    n, _, height, width = x.shape
    waves = np.fft.rfft2(x.astype(np.float64))
    cov = np.einsum("ntab,nsab->abts", waves, waves.conj()) / n
    value, vector = np.linalg.eigh(cov)
    value = np.maximum(value, 0)
    amplitude = np.sqrt(value / twins(width)[:, None])
    return vector * amplitude[..., None, :], (height * width) ** -1.0 * value


@dataclasses.dataclass(frozen=True)
class ClimateConfig:
    """A Gaussian analysis by the climate of periodic fields, in so many `steps` of conjugate gradients."""

    steps: int = 48

    def __post_init__(self) -> None:
        require(self.steps > 0, "steps > 0", self.steps, "pass a positive number")

    def build(self, layout: Layout) -> ClimateAnalysis:
        """The analysis for states of this layout.

        Raises:
            ConfigError: a state that is no series of periodic fields.
        """
        fields = len(layout.state) == 3 and layout.periodic
        require(fields, "periodic states (time, height, width) for a climate of fields", layout, "leave it out")
        return ClimateAnalysis(layout.state, self.steps)
