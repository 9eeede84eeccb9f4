"""Maps of windows `(days, n, n)` from what was seen along tracks: tuned optimal interpolation, and the scale that a map resolves."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.ops.linear import truncated_conjugate_gradient
from vardax_flax.ops.precision import full_precision

SPACE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gaussian": lambda r: jnp.exp(-(r**2)),
    "matern32": lambda r: (1 + math.sqrt(3) * r) * jnp.exp(-math.sqrt(3) * r),
    "matern52": lambda r: (1 + math.sqrt(5) * r + 5 / 3 * r**2) * jnp.exp(-math.sqrt(5) * r),
}
TIME: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gaussian": lambda t: jnp.exp(-(t**2)),
    "exponential": lambda t: jnp.exp(-t),
    "same_day": lambda t: (t == 0).astype(t.dtype),
}
FAMILIES = tuple((space, time) for space in SPACE for time in ("gaussian", "exponential"))
SAME_DAY = tuple((space, "same_day") for space in SPACE)
IMAGES = 2  # copies of the square on either side, summed to a periodic covariance
AT_ONCE = 8  # windows
RATIOS = (1.3, 1.15, 1.06)  # of scales that are compared: the first to choose a family, the others to refine it
SCREENED = 4  # windows on which a family is chosen
ROUGH = 1e-2  # residual with which scales are compared
RESOLVED = 0.5  # of the truth's spectral density is the error's, at the scale that a map resolves


class Scales(NamedTuple):
    """What is tuned.

    Args:
        length: L, in pixels.
        duration: T, in days.
        noise: σ, in standard deviations of the field.
        down, across: c, in rows and columns a day.
    """

    length: float = 8.0
    duration: float = 8.0
    noise: float = 0.1
    down: float = 0.0
    across: float = 0.0


class Solved(NamedTuple):
    """Maps `(windows, days, n, n)`, and the relative residual of the system of each window `(windows,)`."""

    x: jax.Array
    residual: jax.Array


def spectrum(space: str, length: jax.Array, n: int, dtype: jnp.dtype) -> jax.Array:
    """Of a correlation in space, on a periodic square of n × n pixels: `(n, n // 2 + 1)`."""
    copies = 2 * IMAGES + 1
    nearest = np.fft.fftfreq(n, 1 / n)
    place = jnp.asarray((n * np.arange(-IMAGES, IMAGES + 1)[:, None] + nearest).ravel(), dtype) / length
    kernel = SPACE[space](jnp.hypot(place[:, None], place))
    return jnp.fft.rfft2(kernel.reshape(copies, n, copies, n).sum(axis=(0, 2))).real


@functools.partial(jax.jit, static_argnames=("space", "time", "steps", "tolerance", "level"))
@full_precision
def solve(batch: Batch, scales: Scales, space: str, time: str, steps: int, tolerance: float, level: bool) -> Solved:
    """C Hᵀ (H C Hᵀ + σ² I)⁻¹ y by conjugate gradients among the observations, products with C by Fourier transforms."""
    days, n, dtype = batch.input.shape[-3], batch.input.shape[-1], batch.input.dtype
    variance = spectrum(space, jnp.asarray(scales.length, dtype), n, dtype)
    variance = variance if level else variance.at[0, 0].set(0)
    day = jnp.arange(days, dtype=dtype)
    correlation = TIME[time](jnp.abs(day[:, None] - day) / scales.duration)
    rows, columns = 2 * np.pi * jnp.fft.fftfreq(n, dtype=dtype)[:, None], 2 * np.pi * jnp.fft.rfftfreq(n, dtype=dtype)
    angle = (rows * scales.down + columns * scales.across) * day[:, None, None]
    moved = jax.lax.complex(jnp.cos(angle), -jnp.sin(angle))  # from the frame that drifts along

    def covariance(z: jax.Array) -> jax.Array:
        waves = variance * moved.conj() * jnp.fft.rfft2(z)
        return jnp.fft.irfft2(moved * jnp.einsum("ts,s...->t...", correlation.astype(waves.dtype), waves), s=(n, n))

    def one(window: tuple[jax.Array, jax.Array]) -> Solved:
        seen = window[1] > 0
        y = jnp.where(seen, window[0], 0)
        operator = lambda z: jnp.where(seen, covariance(z), 0) + scales.noise**2 * z  # noqa: E731
        solved = truncated_conjugate_gradient(operator, y, steps, tolerance=tolerance)
        size = jnp.linalg.norm(y.ravel())
        return Solved(covariance(solved.x), jnp.linalg.norm(solved.residual.ravel()) / jnp.where(size > 0, size, 1))

    return jax.lax.map(one, (batch.input, batch.mask), batch_size=AT_ONCE)


@dataclasses.dataclass(frozen=True)
class TrackOI:
    """Optimal interpolation in space and time of windows on a periodic square, without mean.

    x = C Hᵀ (H C Hᵀ + σ² I)⁻¹ y, C(r, t) = f(|r − c t| / L) g(|t| / T) (Bretherton, Davis & Fandry 1976; with propagation as in Ducet,
    Le Traon & Reverdin 2000), the variance of the field being 1: only its ratio to σ² matters.

    Args:
        space: f, one of SPACE.
        time: g, one of TIME.
        scales: L, T, σ and c.
        steps: of conjugate gradients at most.
        level: whether the mean over the square varies from day to day, as f says, or is 0.
        tolerance: of the relative residual.

    Raises:
        ConfigError: an unknown covariance, scales that are not positive; when it is called, a residual above the tolerance.

    Example:
        >>> TrackOI("gaussian", "gaussian", Scales(length=8.0))(batch).shape
        (8, 15, 64, 64)
    """

    space: str = "gaussian"
    time: str = "gaussian"
    scales: Scales = Scales()
    steps: int = 3000
    tolerance: float = 1e-3
    level: bool = True

    def __post_init__(self) -> None:
        require(self.space in SPACE, f"space of {', '.join(SPACE)}", repr(self.space), "pick one")
        require(self.time in TIME, f"time of {', '.join(TIME)}", repr(self.time), "pick one")
        for name in ("length", "duration", "noise"):
            value = getattr(self.scales, name)
            require(0 < value < math.inf, f"{name} > 0", value, "pass a positive number")

    def __call__(self, batch: Batch) -> jax.Array:
        """Maps `(windows, days, n, n)` of batches `(windows, days, n, n)`."""
        solved = solve(batch._replace(target=None), self.scales, self.space, self.time, self.steps, self.tolerance, self.level)
        worst = float(solved.residual.max())
        # the recursion's own residual, hence the margin
        require(worst <= 1.01 * self.tolerance, f"a relative residual of at most {self.tolerance:g}", f"{worst:.1e}", "allow more steps")
        return solved.x


def rmse(x: jax.Array, truth: jax.Array) -> float:
    """Root mean square of the difference, over all pixels, days and windows."""
    return float(np.sqrt(np.square(np.asarray(x, np.float64) - np.asarray(truth, np.float64)).mean()))


def tuned_oi(batch: Batch, families: Sequence[tuple[str, str]] = FAMILIES) -> TrackOI:
    """The optimal interpolation of least root mean square error over all days of these windows.

    A coordinate search over the logarithms of the scales and over the drift: coarsely for each family on a few windows, then finely for
    the best one on all of them; last, whether the mean over the square varies.

    Args:
        batch: windows with their truth; 8 determine five numbers well.
        families: pairs of covariances in space and in time.
    """
    few = jax.tree.map(lambda leaf: leaf[:SCREENED], batch)
    found: list[tuple[float, TrackOI]] = []
    for space, time in families:
        start = min(found, key=lambda pair: pair[0])[1] if found else TrackOI()
        found.append(search(few, dataclasses.replace(start, space=space, time=time), RATIOS[0]))
    best = min(found, key=lambda pair: pair[0])[1]
    for ratio in RATIOS[1:]:
        _, best = search(batch, best, ratio)
    both = [search(batch, dataclasses.replace(best, level=level), RATIOS[-1]) for level in (True, False)]
    return min(both, key=lambda pair: pair[0])[1]


def search(batch: Batch, start: TrackOI, ratio: float) -> tuple[float, TrackOI]:
    """From there, neighbour by neighbour, to one that has no better neighbour; with its error."""
    tried: dict[Scales, float] = {}

    def error(scales: Scales) -> float:
        if scales not in tried:
            solved = solve(batch._replace(target=None), scales, start.space, start.time, start.steps, ROUGH, start.level)
            tried[scales] = rmse(solved.x, batch.target) if float(solved.residual.max()) <= 1.01 * ROUGH else math.inf
        return tried[scales]

    scales = start.scales
    # on one day nothing lasts and nothing drifts
    names = ("length", "noise") if start.time == "same_day" else Scales._fields
    improved = True
    while improved:
        improved = False
        for name in names:
            for up in (True, False):
                while error(changed := neighbour(scales, name, ratio, up)) < error(scales):
                    scales, improved = changed, True
    return error(scales), dataclasses.replace(start, scales=scales)


def neighbour(scales: Scales, name: str, ratio: float, up: bool) -> Scales:
    """A scale times or over the ratio; a drift more or less by as many pixels a day as the ratio exceeds 1."""
    value = getattr(scales, name)
    if name in ("down", "across"):
        value += (ratio - 1) * (1 if up else -1)
    else:
        value *= ratio if up else 1 / ratio
    return scales._replace(**{name: float(f"{value:.5e}") if abs(value) > 1e-6 else 0.0})  # so that the way back leads to the same number


def resolved_scale(error: jax.Array, truth: jax.Array) -> float:
    """λₓ, the smallest wavelength in pixels at which the spectral density of the error is at most half of the truth's.

    Densities along x, the last axis, by periodic Fourier transforms, averaged over all rows, days and windows; the mean is left out. Where
    the ratio grows beyond one half between two wave numbers, it is interpolated linearly. (The score 1 − PSD(error) / PSD(truth) = 0.5 of
    the ocean data challenges, Le Guillou et al. 2021.)

    Args:
        error, truth: `(*batch, n, n)`.

    Returns:
        2 where the shortest wave is resolved, infinity where none is.

    Example:
        >>> resolved_scale(0.1 * truth, truth)
        2.0
    """
    n = truth.shape[-1]
    density = lambda x: np.square(np.abs(np.fft.rfft(np.asarray(x, np.float64)))).reshape(-1, n // 2 + 1).mean(axis=0)[1:]  # noqa: E731
    wrong, right = density(error), density(truth)
    resolved = np.flatnonzero(wrong <= RESOLVED * right)
    if len(resolved) == 0:
        return math.inf
    last = int(resolved[-1])  # wave number − 1
    if last == len(right) - 1:
        return n / (last + 1)
    # nothing there to resolve: the crossing is at the last wave that is resolved
    low, high = (wrong[i] / right[i] if right[i] > 0 else (math.inf if wrong[i] > 0 else 0.0) for i in (last, last + 1))
    return n / (last + 1 + (RESOLVED - low) / (high - low))
