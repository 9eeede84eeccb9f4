"""Sea-surface height of nonlinear mesoscale eddies, seen along the tracks of a few satellites: the problem of gridded altimetry."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Observing
from vardax_flax.ops.half_plane import twins
from vardax_flax.simulators.tracks import nadir_tracks

RISE, FALL = 3, 4  # of the spectrum that the model starts from: |k|^{2 RISE} towards long waves, |k|^{−2 FALL} towards short ones
COURANT = 1.3  # steps a day for each pixel a day: with the shortest wave, and the fastest eddies, within what RK4 bears
HYPER = 4  # half the order of the derivative that dissipates
GROWTH = 1.32  # standard deviation of ψ over a window in those of the start, by the inverse cascade: measured with the default values


class _Waves(NamedTuple):
    """Constants of each wave number `(size, size // 2 + 1)`, with zeros where it is truncated."""

    vorticity: Any  # × x → q
    velocity: Any  # × x → (u, v)
    advection: Any  # × (u v, v² − u²), summed → the part of ∂x/∂t that is −J(ψ, q)
    linear: Any  # × x → the other parts of ∂x/∂t
    start: Any  # standard deviation of a coefficient of x
    kept: Any  # 1 within the truncation, but for the mean


@dataclasses.dataclass(frozen=True)
class QG2D(Observing):
    """All days of a window of quasi-geostrophic eddies, from what satellites saw of them along their tracks.

    One and a half layers on a doubly periodic β-plane, with hyperviscosity at the end of the enstrophy cascade:

        ∂q/∂t + J(ψ, q) + β ∂ψ/∂x = −r ∇²ψ − ν ∇⁸ q,  q = ∇²ψ − ψ / L_d²

    (Vallis 2017, *Atmospheric and Oceanic Fluid Dynamics*, 5.4 and 12). Height is x = ψ / a, where a makes its climatological standard
    deviation 1 at the default values. A Gaussian field of random phases, of variance S(k) ∝ |k|⁶ (1 + (|k| L)²)^{−7}, spins up until it
    has vortices and filaments. From there on energy decays slowly while it moves on to longer waves: the default drag is the one at which
    the variance of x stays. y = x + σ ε along the tracks.

    Spectral in space, the circle of wave numbers below two thirds of the shortest, so that no product is aliased; RK4 in time with the
    linear terms exact (Lawson 1967). x is along the columns, y along the rows.

    Args:
        size: pixels a side, even.
        days: of the window.
        spinup_days: before the window.
        length: L, in pixels.
        speed: root mean square of the velocity before the spin-up, in pixels a day; it falls to about two thirds.
        deformation_radius: L_d, in pixels.
        beta: β, per pixel and day; long waves drift by β L_d² a day towards lower columns.
        drag: r, per day; may be 0.
        damping: rate at which hyperviscosity damps the shortest wave, per day; may be 0.
        steps_per_day: of the integration.
        satellites: how many.
        pass_rate: probability that a pass was observed.
        noise_std: σ, in the units of x.

    Raises:
        ConfigError: a size that is not even, scales that are not positive, steps too long for the speed.

    Example:
        >>> element = QG2D().sample(jax.random.key(0))
        >>> element.input.shape, element.target.shape
        ((15, 64, 64), (15, 64, 64))
    """

    kind: ClassVar[str] = "qg2d"

    size: int = 64
    days: int = 15
    spinup_days: int = 20
    length: float = 3.0
    speed: float = 2.6
    deformation_radius: float = 8.0
    beta: float = 0.05
    drag: float = 0.01
    damping: float = 2.0
    steps_per_day: int = 8
    satellites: int = 4
    pass_rate: float = 0.65
    noise_std: float = 0.05

    def __post_init__(self) -> None:
        require(self.size >= 8 and self.size % 2 == 0, "an even size >= 8", self.size, "pass an even number of pixels")
        for name in ("days", "steps_per_day", "satellites"):
            require(getattr(self, name) >= 1, f"{name} >= 1", getattr(self, name), "pass a positive number")
        for name in ("spinup_days", "drag", "damping"):
            require(0 <= getattr(self, name) < math.inf, f"{name} >= 0", getattr(self, name), "pass 0 or more")
        for name in ("length", "speed", "deformation_radius", "noise_std"):
            require(0 < getattr(self, name) < math.inf, f"{name} > 0", getattr(self, name), "pass a positive number")
        least = COURANT * self.speed
        require(self.steps_per_day >= least, f"steps_per_day >= {least:.1f} at this speed", self.steps_per_day, "pass more")
        require(math.isfinite(self.beta), "a finite beta", self.beta, "pass a number such as 0.05")
        require(0 < self.pass_rate <= 1, "0 < pass_rate <= 1", self.pass_rate, "pass a probability")

    @functools.cached_property
    def _waves(self) -> _Waves:
        n = self.size
        rows, columns = np.meshgrid(2 * np.pi * np.fft.fftfreq(n), 2 * np.pi * np.fft.rfftfreq(n), indexing="ij")
        square = rows**2 + columns**2
        shortest = 2 * np.pi / 3
        kept = (square > 0) & (square < shortest**2)
        inverse = kept / np.where(kept, square + self.deformation_radius**-2, 1)
        spectrum = kept * square**RISE * (1 + self.length**2 * square) ** -(RISE + FALL)
        spectrum = spectrum / (spectrum * twins(n)).sum()
        scale = GROWTH * self.speed / math.sqrt((spectrum * twins(n) * square).sum())  # a, in square pixels a day
        return _Waves(
            -scale * kept * (square + self.deformation_radius**-2),
            scale * kept * np.stack([-1j * rows, 1j * columns]),
            inverse / scale * np.stack([rows**2 - columns**2, -rows * columns]),
            (1j * self.beta * columns - self.drag * square) * inverse - self.damping * kept * (square / shortest**2) ** HYPER,
            n**2 / GROWTH * np.sqrt(spectrum),
            kept.astype(float),
        )

    def _constants(self, dtype: Any) -> _Waves:
        """`_waves` in the precision of real numbers of a type."""
        # a traced constant is remembered by the identity of its NumPy array: one object must not serve two precisions
        types = (jnp.result_type(dtype, jnp.complex64) if np.iscomplexobj(a) else dtype for a in self._waves)
        return _Waves(*(jnp.asarray(a.astype(t, copy=False)) for a, t in zip(self._waves, types, strict=True)))

    def _advection(self, coefficients: jax.Array) -> jax.Array:
        """The part of ∂x/∂t that is −J(ψ, q), of coefficients.

        J(ψ, q) = J(ψ, ∇²ψ) = (∂ₓₓ − ∂ᵧᵧ)(u v) + ∂ₓᵧ(v² − u²): four transforms in two calls.
        """
        waves, n = self._constants(coefficients.real.dtype), self.size
        u, v = jnp.moveaxis(jnp.fft.irfft2(waves.velocity * coefficients[..., None, :, :], s=(n, n)), -3, 0)
        products = jnp.fft.rfft2(jnp.stack([u * v, (v - u) * (v + u)], axis=-3))
        return (waves.advection * products).sum(axis=-3)

    def tendency(self, x: jax.Array) -> jax.Array:
        """∂x/∂t per day of heights `(*batch, size, size)`, of which only the kept waves count."""
        linear, kept = (getattr(self._constants(x.dtype), name) for name in ("linear", "kept"))
        coefficients = kept * jnp.fft.rfft2(x)
        return jnp.fft.irfft2(linear * coefficients + self._advection(coefficients), s=(self.size, self.size))

    def _day(self, coefficients: jax.Array) -> jax.Array:
        """A day later: RK4 in the variable e^{−linear t} x̂, in which only advection is left."""
        dt = 1 / self.steps_per_day
        linear = self._constants(coefficients.real.dtype).linear
        half, f = jnp.exp(linear * (dt / 2)), self._advection

        def step(start: jax.Array, _: None) -> tuple[jax.Array, None]:
            k1, mid = f(start), half * start
            k2 = f(mid + dt / 2 * half * k1)
            k3 = f(mid + dt / 2 * k2)
            k4 = f(half * (mid + dt * k3))
            return half * (mid + dt / 6 * (half * k1 + 2 * (k2 + k3))) + dt / 6 * k4, None

        return jax.lax.scan(step, coefficients, None, length=self.steps_per_day)[0]

    def evolve(self, x: jax.Array, days: int) -> jax.Array:
        """Heights some days after those `(*batch, size, size)`."""
        start = self._constants(x.dtype).kept * jnp.fft.rfft2(x)
        end, _ = jax.lax.scan(lambda c, _: (self._day(c), None), start, None, length=days)
        return jnp.fft.irfft2(end, s=(self.size, self.size))

    def vorticity(self, x: jax.Array) -> jax.Array:
        """q per day of heights `(*batch, size, size)`."""
        return jnp.fft.irfft2(self._constants(x.dtype).vorticity * jnp.fft.rfft2(x), s=(self.size, self.size))

    def height(self, q: jax.Array) -> jax.Array:
        """x of potential vorticity `(*batch, size, size)`: the inverse of `vorticity` on the kept waves, 0 elsewhere."""
        waves = self._constants(q.dtype)
        inverse = waves.kept / jnp.where(waves.kept > 0, waves.vorticity, 1)
        return jnp.fft.irfft2(inverse * jnp.fft.rfft2(q), s=(self.size, self.size))

    def field(self, key: jax.Array) -> jax.Array:
        """x `(days, size, size)` of a window."""
        noise = jax.random.normal(key, (self.size, self.size))
        start = self._constants(noise.dtype).start * jnp.fft.rfft2(noise) / self.size
        spun, _ = jax.lax.scan(lambda c, _: (self._day(c), None), start, None, length=self.spinup_days)
        _, window = jax.lax.scan(lambda c, _: (self._day(c), c), spun, None, length=self.days)
        return jnp.fft.irfft2(window, s=(self.size, self.size))

    def observe(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_tracks, key_noise = jax.random.split(key)
        mask = nadir_tracks(key_tracks, self.size, self.days, self.satellites, self.pass_rate).astype(x.dtype)
        return jnp.where(mask > 0, x + self.noise_std * jax.random.normal(key_noise, x.shape, x.dtype), 0), mask

    def sample(self, key: jax.Array) -> Batch:
        key_field, key_observe = jax.random.split(key)
        x = self.field(key_field)
        y, mask = self.observe(x, key_observe)
        return Batch(input=y, mask=mask, target=x)
