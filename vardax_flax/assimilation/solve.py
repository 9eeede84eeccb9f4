"""Minimisers of a cost ½‖r(w)‖², which say how they ended."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optimistix as optx

from vardax_flax.core.config import require
from vardax_flax.ops.linear import truncated_conjugate_gradient

Residual = Callable[[jax.Array], jax.Array]


class Status(enum.IntEnum):
    """How a minimisation ended."""

    CONVERGED = 0
    OUT_OF_STEPS = 1
    STALLED = 2
    NOT_FINITE = 3


class Solve(NamedTuple):
    """A minimum, and how it was reached; every field has the leading axes of the batch.

    Args:
        control: w, where the cost is least.
        cost: J = ½‖r(w)‖² there.
        distance: what is left to the minimum, in posterior standard deviations (an upper bound where the cost has the prior ½‖w‖²).
        iterations: outer iterations of Gauss–Newton, steps of a quasi-Newton method.
        status: a `Status`.
    """

    control: jax.Array
    cost: jax.Array
    distance: jax.Array
    iterations: jax.Array
    status: jax.Array

    @property
    def converged(self) -> jax.Array:
        """Where the minimum was found."""
        return self.status == Status.CONVERGED


def describe(solve: Solve) -> str:
    """One line that says how many of a batch converged, and how the others ended.

    Example:
        >>> describe(method.solve(batch))
        '32 of 32 converged'
    """
    statuses = jnp.atleast_1d(solve.status).reshape(-1).tolist()
    counts = {status: statuses.count(int(status)) for status in Status}
    others = ", ".join(f"{n} {status.name.lower().replace('_', ' ')}" for status, n in counts.items() if n and status != Status.CONVERGED)
    return f"{counts[Status.CONVERGED]} of {len(statuses)} converged" + (f" ({others})" if others else "")


def cost(residual: Residual, control: jax.Array) -> jax.Array:
    """J(w) = ½‖r(w)‖²."""
    return 0.5 * jnp.square(residual(control)).sum()


def _tolerance(dtype: Any, tolerance: float | None) -> float:
    """1e-6 standard deviations in float64, 1e-3 in float32, unless told."""
    return (1e-6 if jnp.finfo(dtype).bits == 64 else 1e-3) if tolerance is None else tolerance


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """Levenberg–Marquardt: (JᵀJ + λ I) p = −Jᵀ r by at most `inner` conjugate gradients, w ← w + p if the cost falls, else λ grows.

    A truncated inner loop gives a shorter step, never an error: each of its iterates lowers the quadratic model. J is never formed, and the
    cost never rises. Reference: Gratton, Lawless & Nichols 2007, *Approximate Gauss–Newton methods for nonlinear least squares problems*.

    Args:
        outer: linearisations at most.
        inner: conjugate-gradient steps in each, at most.
        inner_tolerance: relative residual at which the inner loop stops.
        damping: the first λ; a step that is refused multiplies it by 10 (to at least 1, the curvature of the prior), one that is taken
            divides it by 10, and below 0.1 it is 0.
        tolerance: length of the last step in posterior standard deviations, at which the minimum counts as found; None: 1e-6 in float64,
            1e-3 in float32.

    Example:
        >>> GaussNewton()(lambda w: jnp.concatenate([w, 2 * w - 1]), jnp.zeros(3)).status
        Array(0, dtype=int32)
    """

    outer: int = 50
    inner: int = 50
    inner_tolerance: float = 1e-4
    damping: float = 0.0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        require(min(self.outer, self.inner) >= 1, "at least one iteration", (self.outer, self.inner), "pass more")
        require(0 < self.inner_tolerance < 1 and self.damping >= 0, "an inner tolerance in (0, 1), damping >= 0", self, "pass such numbers")

    def __call__(self, residual: Residual, start: jax.Array) -> Solve:
        """The minimum of ½‖r(w)‖² from w = start `(size,)`."""
        tolerance = _tolerance(start.dtype, self.tolerance)

        def step(solve: Solve, damping: jax.Array) -> tuple[Solve, jax.Array]:
            values, push = jax.linearize(residual, solve.control)
            pull = jax.linear_transpose(push, solve.control)
            gradient = pull(values)[0]
            direction, rest = truncated_conjugate_gradient(
                lambda v: pull(push(v))[0] + damping * v, -gradient, self.inner, tolerance=self.inner_tolerance
            )
            # ‖H⁻¹g‖_H ≤ ‖p‖_H + ‖H⁻¹ρ‖_H for the residual ρ of an inner loop cut short, and H ≥ I where the cost has a prior
            distance = jnp.sqrt(jnp.maximum(-(gradient @ direction), 0)) + jnp.linalg.norm(rest)
            trial = solve.control + direction
            value = cost(residual, trial)
            # near the minimum the fall is smaller than the rounding of the cost
            slack = 4 * jnp.finfo(start.dtype).eps * jnp.abs(solve.cost)
            better = value <= solve.cost + slack * (distance <= 1e3 * tolerance)
            found = (distance <= tolerance) & (damping == 0)
            broken = ~jnp.isfinite(gradient).all()
            stalled = damping > 1e12
            status = jnp.where(broken, Status.NOT_FINITE, jnp.where(found, Status.CONVERGED, jnp.where(stalled, Status.STALLED, -1)))
            taken = better & ~broken
            solve = Solve(
                jnp.where(taken, trial, solve.control), jnp.where(taken, jnp.minimum(value, solve.cost), solve.cost), distance,
                solve.iterations + 1, status.astype(jnp.int32),
            )  # fmt: skip
            eased = jnp.where(damping < 1, 0.0, damping / 10)
            return solve, jnp.where(taken, eased, jnp.maximum(10 * damping, 1.0)).astype(start.dtype)

        def going_on(carry: tuple[Solve, jax.Array]) -> jax.Array:
            return (carry[0].status < 0) & (carry[0].iterations < self.outer)

        value = cost(residual, start)
        first = Solve(
            start, value, jnp.full((), jnp.inf, start.dtype), jnp.zeros((), jnp.int32),
            jnp.where(jnp.isfinite(value), -1, Status.NOT_FINITE).astype(jnp.int32),
        )  # fmt: skip
        solve, _ = jax.lax.while_loop(going_on, lambda carry: step(*carry), (first, jnp.asarray(self.damping, start.dtype)))
        return solve._replace(status=jnp.where(solve.status < 0, Status.OUT_OF_STEPS, solve.status).astype(jnp.int32))


@dataclasses.dataclass(frozen=True)
class QuasiNewton:
    """L-BFGS, or BFGS for a small state, by optimistix (Nocedal & Wright 2006, chapters 6 and 7).

    Args:
        method: "lbfgs" or "bfgs".
        steps: at most.
        history: pairs that L-BFGS remembers.
        tolerance: norm of the gradient at which the minimum counts as found; where the cost has the prior ½‖w‖² that bounds the distance in
            posterior standard deviations. None: 1e-6 in float64, 1e-3 in float32.

    Example:
        >>> QuasiNewton("bfgs")(lambda w: jnp.concatenate([w, 2 * w - 1]), jnp.zeros(3)).converged
        Array(True, dtype=bool)
    """

    method: str = "lbfgs"
    steps: int = 500
    history: int = 10
    tolerance: float | None = None

    def __post_init__(self) -> None:
        require(self.method in ("lbfgs", "bfgs"), "lbfgs or bfgs", self.method, "pick one")
        require(min(self.steps, self.history) >= 1, "positive steps and history", self, "pass more")

    def __call__(self, residual: Residual, start: jax.Array) -> Solve:
        """The minimum of ½‖r(w)‖² from w = start `(size,)`."""
        tolerance = _tolerance(start.dtype, self.tolerance)
        # its own test is on the last step, relative to the cost: so strict that ours, on the gradient, decides
        tight = float(jnp.finfo(start.dtype).eps)
        solver: Any = (
            optx.LBFGS(rtol=tight, atol=tight, history_length=self.history) if self.method == "lbfgs" else optx.BFGS(rtol=tight, atol=tight)
        )

        def objective(w: jax.Array, _: None) -> jax.Array:
            return cost(residual, w)

        found: Any = optx.minimise(objective, solver, start, max_steps=self.steps, throw=False)
        value, gradient = jax.value_and_grad(lambda w: cost(residual, w))(found.value)
        distance = jnp.linalg.norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(distance)
        out_of_steps = found.stats["num_steps"] >= self.steps
        status = jnp.where(distance <= tolerance, Status.CONVERGED, jnp.where(out_of_steps, Status.OUT_OF_STEPS, Status.STALLED))
        status = jnp.where(finite, status, Status.NOT_FINITE).astype(jnp.int32)
        return Solve(found.value, value, distance, jnp.asarray(found.stats["num_steps"], jnp.int32), status)


Minimiser = GaussNewton | QuasiNewton
