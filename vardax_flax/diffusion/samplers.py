"""From noise to a draw: the reverse of a noise process, given its velocity. One scan each, or one adaptive solve.

The state is u = cos φ x₀ + sin φ ε at the angle φ (see `processes`). A network knows the velocity v(u, φ) = E[cos φ ε − sin φ x₀ | u],
and with it the denoised state D = cos φ u − sin φ v, the score −(sin φ u + cos φ v) / sin φ and the probability-flow ODE du / dφ = v.
For standard normal data v = 0: what a sampler has to follow is the departure from that. Written for one draw; `jax.vmap` gives many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import diffrax
import jax
import jax.numpy as jnp
import lineax

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
"""v: u `(*state,)` at the angle φ `()` → `(*state,)`."""

SamplerName = Literal["adams", "heun", "stochastic_heun", "ddim", "dpm_solver", "euler_maruyama", "ode", "sde"]
CHURN = 10.0  # of `stochastic_heun`, over all steps
CHURN_MAX = 2**0.5 - 1  # Karras et al. 2022: never more new noise than there is old
# steps after which two narrow modes with a gap have their weights and widths to 2 and 6 %; "ode" takes its own
STEPS = {"adams": 28, "heun": 24, "stochastic_heun": 60, "ddim": 300, "dpm_solver": 80, "euler_maruyama": 400, "ode": 2, "sde": 200}
MAX_STEPS = 1000  # of one adaptive solve
ORDER, WARM = 4, 2  # of `adams`, and its first steps, for which there are no velocities behind them


def denoised(velocity: Velocity, u: jax.Array, angle: jax.Array) -> jax.Array:
    """D = E[x₀ | u] = cos φ u − sin φ v."""
    return jnp.cos(angle) * u - jnp.sin(angle) * velocity(u, angle)


def base_mean(velocity: Velocity, top: jax.Array, like: jax.Array) -> jax.Array:
    """Mean of u at the largest angle: cos φ E[x₀], where the denoised state of 0 is the mean of all states, to order cos² φ."""
    return jnp.cos(top) * denoised(velocity, jnp.zeros_like(like), top)


class Sampler(Protocol):
    """Interface of a sampler: u `(*state,)` at `angles[0]`, angles `(n + 1,)` that fall to 0, a key → one draw `(*state,)`."""

    def __call__(self, velocity: Velocity, u: jax.Array, angles: jax.Array, key: jax.Array) -> jax.Array: ...


def adams(velocity: Velocity, u: jax.Array, angles: jax.Array, key: jax.Array) -> jax.Array:
    """Adams–Bashforth steps of order 4 of the ODE: the cubic through the last four velocities, integrated over the step.

    The first two steps are Heun's; the last one, to angle 0, needs no velocity there. One evaluation a step. Reference: Liu et al. 2022,
    *Pseudo numerical methods for diffusion models*; Zhang & Chen 2023.
    """

    def step(carry: tuple[jax.Array, jax.Array], at: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        u, slopes = carry
        i, angle, to, weights = at
        slope = velocity(u, angle)
        slopes = jnp.concatenate([slope[None], slopes[:-1]])

        def warm() -> jax.Array:
            return u + 0.5 * (to - angle) * (slope + velocity(u + (to - angle) * slope, to))

        return (jax.lax.cond(i < WARM, warm, lambda: u + jnp.tensordot(weights, slopes, 1)), slopes), None

    steps = (jnp.arange(len(angles) - 1), angles[:-1], angles[1:], _adams_weights(angles))
    return jax.lax.scan(step, (u, jnp.zeros((ORDER, *u.shape), u.dtype)), steps)[0][0]


def _adams_weights(angles: jax.Array) -> jax.Array:
    """`(n, 4)`: of the velocity at the start of each of n steps and of the three before, as many as there are, in its integral."""
    n = len(angles) - 1
    at = jnp.arange(n)[:, None] - jnp.arange(ORDER)
    known, nodes = at >= 0, angles[jnp.maximum(at, 0)]
    middle, half = 0.5 * (angles[1:] + angles[:-1]), 0.5 * (angles[1:] - angles[:-1])
    points = middle[:, None] + half[:, None] * jnp.array([-1, 1]) / math.sqrt(3)  # Gauss's two points integrate a cubic exactly
    # Lagrange's polynomials: of step, point, velocity, other velocity
    others = known[:, None, None, :] & ~jnp.eye(ORDER, dtype=bool)
    apart = jnp.where(others, nodes[:, None, :, None] - nodes[:, None, None, :], 1)
    factors = jnp.where(others, (points[:, :, None, None] - nodes[:, None, None, :]) / apart, 1)
    return jnp.where(known, half[:, None] * factors.prod(axis=-1).sum(axis=1), 0)


def heun(velocity: Velocity, u: jax.Array, angles: jax.Array, key: jax.Array, *, churn: float = 0.0) -> jax.Array:
    """Heun's second-order steps of the ODE, each after new noise if `churn` > 0 (Karras et al. 2022, algorithm 2, here in the angle).

    Two evaluations a step.
    """
    gamma = min(churn / (len(angles) - 1), CHURN_MAX)

    def step(u: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        i, angle, to = at
        if gamma > 0:
            raised = jnp.arctan((1 + gamma) * jnp.tan(angle))
            kept = jnp.cos(raised) / jnp.cos(angle)
            u, angle = kept * u + _added(angle, raised) * _noise(key, i, u), raised
        slope = velocity(u, angle)
        euler = u + (to - angle) * slope
        # at angle 0 the level has no logarithm for a network to see: the last step is Euler's
        corrected = u + 0.5 * (to - angle) * (slope + velocity(euler, jnp.where(to > 0, to, angle)))
        return jnp.where(to > 0, corrected, euler), None

    return _scan(step, u, angles)


def stochastic_heun(velocity: Velocity, u: jax.Array, angles: jax.Array, key: jax.Array) -> jax.Array:
    """`heun` with new noise at every step, which forgets the errors of earlier ones."""
    return heun(velocity, u, angles, key, churn=CHURN)


def ddim(velocity: Velocity, u: jax.Array, angles: jax.Array, key: jax.Array) -> jax.Array:
    """u' = cos φ' D + sin φ' ε̂: first-order, exact where D stays the same (Song, Meng & Ermon 2021). One evaluation a step."""

    def step(u: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        _, angle, to = at
        return jnp.cos(to - angle) * u + jnp.sin(to - angle) * velocity(u, angle), None

    return _scan(step, u, angles)


def dpm_solver(velocity: Velocity, u: jax.Array, angles: jax.Array, key: jax.Array) -> jax.Array:
    """DPM-Solver++(2M): second-order from two consecutive denoised states (Lu et al. 2022, algorithm 2). One evaluation a step."""

    def step(carry: tuple[jax.Array, ...], at: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], None]:
        u, before, h_before = carry
        i, angle, to = at
        here = denoised(velocity, u, angle)
        h = jnp.log(jnp.tan(angle) / jnp.where(to > 0, jnp.tan(to), 0.5 * jnp.tan(angle)))
        ahead = jnp.where((i > 0) & (to > 0), 0.5 * h / h_before, 0)  # the last step, to angle 0, is first-order
        blended = (1 + ahead) * here - ahead * before
        shrink = jnp.sin(to) / jnp.sin(angle)
        return (jnp.cos(to) * blended + shrink * (u - jnp.cos(angle) * blended), here, h), None

    return _scan(step, (u, jnp.zeros_like(u), jnp.ones((), u.dtype)), angles)[0]


def euler_maruyama(velocity: Velocity, u: jax.Array, angles: jax.Array, key: jax.Array) -> jax.Array:
    """The reverse SDE by Euler–Maruyama with its linear part exact, u' = k u + 2 (φ' − φ) v + √(1 − k²) ε, k = cos φ / cos φ'.

    So standard normal data stay that at any number of steps. The last step denoises. One evaluation a step.
    """

    def step(u: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        i, angle, to = at
        v, kept = velocity(u, angle), jnp.cos(angle) / jnp.cos(to)
        moved = kept * u + 2 * (to - angle) * v + _added(to, angle) * _noise(key, i, u)
        return jnp.where(to > 0, moved, jnp.cos(angle) * u - jnp.sin(angle) * v), None

    return _scan(step, u, angles)


def ode(velocity: Velocity, u: jax.Array, angles: jax.Array, key: jax.Array) -> jax.Array:
    """The probability-flow ODE from the largest to the smallest angle with adaptive steps, then one denoising.

    The angles between are not used.
    """
    u = flow(lambda angle, u: velocity(u, angle), u, angles[0], angles[-2])
    return denoised(velocity, u, angles[-2])


def flow(field: Callable[[Any, Any], Any], y: Any, start: jax.Array, end: jax.Array, *, tolerance: float = 1e-5) -> Any:
    """y(end) of dy/dt = field(t, y), by the pair of Tsitouras (2011) of order 5 with adaptive steps; NaN where 1000 do not suffice."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: field(t, y)), diffrax.Tsit5(), start, end, None, y,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance), max_steps=MAX_STEPS, throw=False,
    )  # fmt: skip
    # an error would take the whole batch with it
    arrived = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda leaf: jnp.where(arrived, leaf[-1], jnp.nan), solution.ys)


def sde(velocity: Velocity, u: jax.Array, angles: jax.Array, key: jax.Array) -> jax.Array:
    """The reverse SDE by Heun's method on the given angles, then one denoising. Two evaluations a step.

    du = −(sin² φ u + 2 sin φ cos φ v) dr + √2 sin φ dW in r = −log tan φ, where for standard normal data nothing is stiff.
    """
    times = -jnp.log(jnp.tan(angles[:-1]))

    def drift(r: Any, u: jax.Array, _: Any) -> jax.Array:
        angle = jnp.arctan(jnp.exp(-r))
        return -jnp.square(jnp.sin(angle)) * u - jnp.sin(2 * angle) * velocity(u, angle)

    def diffusion(r: Any, u: jax.Array, _: Any) -> lineax.AbstractLinearOperator:
        return lineax.DiagonalLinearOperator(jnp.full_like(u, math.sqrt(2) * jnp.sin(jnp.arctan(jnp.exp(-r)))))

    # the steps are given, so the path need not be consistent between finer and coarser ones
    path = diffrax.UnsafeBrownianPath(jax.ShapeDtypeStruct(u.shape, u.dtype), key)
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)), diffrax.Heun(), times[0], times[-1], None, u,
        stepsize_controller=diffrax.StepTo(times), max_steps=len(angles), adjoint=diffrax.DirectAdjoint(),
    )  # fmt: skip
    assert solution.ys is not None
    return denoised(velocity, jnp.asarray(solution.ys[-1]), angles[-2])


def _added(low: jax.Array, high: jax.Array) -> jax.Array:
    """√(1 − k²), k = cos high / cos low: as a product, since k rounds to 1 where the angles are small."""
    return jnp.sqrt(jnp.sin(high - low) * jnp.sin(high + low)) / jnp.cos(low)


def _noise(key: jax.Array, step: jax.Array, u: jax.Array) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, step), u.shape, u.dtype)


def _scan(step: Callable[..., tuple[Any, None]], carry: Any, angles: jax.Array) -> Any:
    return jax.lax.scan(step, carry, (jnp.arange(len(angles) - 1), angles[:-1], angles[1:]))[0]


SAMPLERS: dict[str, Sampler] = {
    "adams": adams,
    "heun": heun,
    "stochastic_heun": stochastic_heun,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "euler_maruyama": euler_maruyama,
    "ode": ode,
    "sde": sde,
}
