"""A two-dimensional field that drifts and decorrelates, seen along the tracks of a few satellites: a linear Gaussian model on a grid."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import check_choices, require
from vardax_flax.core.interfaces import ControlVariable
from vardax_flax.ops.half_plane import twins
from vardax_flax.ops.precision import full_precision
from vardax_flax.simulators.tracks import nadir_tracks

SLOPE = -2.5  # of the spectrum in 1 + (|k| L)²


class _Amplitudes(NamedTuple):
    """Fields from white noise: `eof` `(days, days)` mixes days, `wave` `(days, size, size // 2 + 1)` scales and shifts Fourier modes."""

    eof: Any
    wave: Any


@dataclasses.dataclass(frozen=True)
class Tracks2D(ControlVariable):
    """The field of the middle day of a window, or of all its days, from what satellites saw of it along their tracks.

    A stationary Gaussian field of unit variance on a periodic square: its Fourier coefficients follow a_{t+1} = ρ e^{−i k · c} a_t +
    √(1 − ρ²) ξ_t with ρ = e^{−1/τ} and variance S(k) ∝ (1 + (|k| L)²)^{−5/2}, without mean and without the shortest wave (a Matérn field
    of smoothness 3/2 that drifts by c a day; Lindgren, Rue & Lindström 2011). A satellite crosses the square once upwards and once
    downwards a day, along straight lines one pixel wide whose place moves on by the same amount each day; some passes are missing.
    y = x + σ ε along the tracks.

    The control variable are Fourier coefficients in the frame that drifts along, in the eigenvectors of the temporal covariance:
    x_t = F⁻¹ e^{−i k · c t} √S(k) Σ_j Q_tj √λ_j w_j(k), as real and imaginary part of half of the plane of wave numbers.

    Args:
        size: pixels a side, even.
        days: of the window, odd.
        length: L, in pixels.
        correlation_time: τ, in days.
        drift: c = (rows, columns), in pixels a day.
        satellites: how many.
        pass_rate: probability that a pass was observed.
        noise_std: σ, in the units of the field, whose standard deviation is 1.
        target: what is to be inferred: the field of the middle day `(size, size)`, or of the whole window `(days, size, size)`.

    Raises:
        ConfigError: sizes that are not even or odd as they have to be, scales that are not positive, another target.

    Example:
        >>> element = Tracks2D().sample(jax.random.key(0))
        >>> element.input.shape, element.target.shape
        ((15, 64, 64), (64, 64))
    """

    kind: ClassVar[str] = "tracks2d"

    size: int = 64
    days: int = 15
    length: float = 5.0
    correlation_time: float = 10.0
    drift: tuple[float, float] = (-0.3, 0.1)
    satellites: int = 4
    pass_rate: float = 0.65
    noise_std: float = 0.05
    target: Literal["middle", "window"] = "middle"

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.size >= 4 and self.size % 2 == 0, "an even size >= 4", self.size, "pass an even number of pixels")
        require(self.days >= 1 and self.days % 2 == 1, "an odd number of days", self.days, "pass one, so that there is a middle")
        require(self.satellites >= 1, "satellites >= 1", self.satellites, "pass a positive number")
        require(0 < self.pass_rate <= 1, "0 < pass_rate <= 1", self.pass_rate, "pass a probability")
        for name in ("length", "correlation_time", "noise_std"):
            require(0 < getattr(self, name) < math.inf, f"{name} > 0", getattr(self, name), "pass a positive number")

    @property
    def control_shape(self) -> tuple[int, ...]:
        """`(days, size, size // 2 + 1, 2)`: temporal mode, wave number of rows, of columns, real and imaginary part."""
        return (self.days, self.size, self.size // 2 + 1, 2)

    @functools.cached_property
    def _arrays(self) -> _Amplitudes:
        n, half = self.size, self.size // 2
        rows = 2 * np.pi * np.fft.fftfreq(n)[:, None]
        columns = 2 * np.pi * np.fft.rfftfreq(n)[None, :]
        spectrum = (1 + self.length**2 * (rows**2 + columns**2)) ** SLOPE
        spectrum[0, 0] = spectrum[half, :] = spectrum[:, half] = 0
        amplitude = np.sqrt(spectrum / (spectrum * twins(n)).sum() / twins(n)) * n**2
        since = np.arange(self.days) - self.days // 2
        phase = np.exp(-1j * (rows * self.drift[0] + columns * self.drift[1]) * since[:, None, None])
        variance, vectors = np.linalg.eigh(np.exp(-np.abs(np.subtract.outer(since, since)) / self.correlation_time))
        return _Amplitudes(vectors * np.sqrt(np.maximum(variance, 0)), amplitude * phase)

    @full_precision
    def field(self, w: jax.Array, days: slice = slice(None)) -> jax.Array:
        """x `(days, size, size)` of some days, all by default; linear in w."""
        # a traced constant is remembered by the identity of its NumPy array: one object must not serve two precisions
        eof = jnp.asarray(self._arrays.eof[days].astype(w.dtype, copy=False))
        wave = jnp.asarray(self._arrays.wave[days].astype(jnp.result_type(w.dtype, jnp.complex64), copy=False))
        mixed = jnp.einsum("ts,s...->t...", eof, w)
        return jnp.fft.irfft2(wave * jax.lax.complex(mixed[..., 0], mixed[..., 1]), s=(self.size, self.size))

    def state(self, w: jax.Array, element: Batch) -> jax.Array:
        if self.target == "window":
            return self.field(w)
        middle = self.days // 2
        return self.field(w, slice(middle, middle + 1))[0]

    def misfit(self, w: jax.Array, element: Batch) -> jax.Array:
        return jnp.where(element.mask > 0, self.field(w) - element.input, 0) / self.noise_std

    def tracks(self, key: jax.Array) -> jax.Array:
        """Where the satellites look: 1 along the tracks of a window, else 0, `(days, size, size)`."""
        return nadir_tracks(key, self.size, self.days, self.satellites, self.pass_rate)

    def sample(self, key: jax.Array) -> Batch:
        key_field, key_tracks, key_noise = jax.random.split(key, 3)
        x = self.field(jax.random.normal(key_field, self.control_shape))
        mask = self.tracks(key_tracks)
        y = jnp.where(mask > 0, x + self.noise_std * jax.random.normal(key_noise, x.shape), 0)
        return Batch(input=y, mask=mask, target=x if self.target == "window" else x[self.days // 2])
