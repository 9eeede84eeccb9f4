"""Forward models as steps from one observed time to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from vardax_flax.core.config import require


class DiffraxStep:
    """x ↦ the solution of dx/dt = f(x) after `interval`, by diffrax, differentiated by the adjoint that is passed.

    Args:
        tendency: f, from a state to its time derivative.
        interval: model time of the step.
        solver: a diffrax solver; Tsitouras 5(4) unless told.
        dt: step of the solver; None lets it choose.
        rtol, atol: of an adaptive solver.
        adjoint: `diffrax.RecursiveCheckpointAdjoint()` unless told; `DirectAdjoint` for forward mode, which Gauss–Newton needs.
        max_steps: of the solver.

    Example:
        >>> step = DiffraxStep(lambda x: -x, interval=1.0, dt=0.1, adjoint=diffrax.DirectAdjoint())
        >>> step(jnp.ones(2)).shape
        (2,)
    """

    def __init__(
        self, tendency: Callable[[jax.Array], jax.Array], interval: float, *, solver: Any = None, dt: float | None = None,
        rtol: float = 1e-6, atol: float = 1e-6, adjoint: Any = None, max_steps: int = 4096,
    ) -> None:  # fmt: skip
        require(interval > 0, "interval > 0", interval, "pass the model time between two observed times")
        require(dt is None or 0 < dt <= interval, f"0 < dt <= {interval}", dt, "pass a shorter step")
        self.tendency, self.interval, self.dt, self.max_steps = tendency, interval, dt, max_steps
        self.solver = diffrax.Tsit5() if solver is None else solver
        self.adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
        self.controller = diffrax.PIDController(rtol=rtol, atol=atol) if dt is None else diffrax.ConstantStepSize()

    def __call__(self, state: jax.Array) -> jax.Array:
        term = diffrax.ODETerm(lambda t, x, args: self.tendency(x))
        solution = diffrax.diffeqsolve(
            term, self.solver, 0.0, self.interval, self.dt, state, saveat=diffrax.SaveAt(t1=True), adjoint=self.adjoint,
            stepsize_controller=self.controller, max_steps=self.max_steps,
        )  # fmt: skip
        return solution.ys[-1]


def repeat(step: Callable[[jax.Array], jax.Array], n: int) -> Callable[[jax.Array], jax.Array]:
    """n steps as one, by a scan.

    Example:
        >>> repeat(lambda x: 2 * x, 3)(jnp.ones(()))
        Array(8., dtype=float32)
    """
    require(n >= 1, "at least one step", n, "pass more")
    return lambda x: jax.lax.scan(lambda x, _: (step(x), None), x, None, length=n)[0]


def trajectory(step: Callable[[jax.Array], jax.Array], x: jax.Array, n: int) -> jax.Array:
    """x and the n states after it `(n + 1, *state)`, by a scan.

    Example:
        >>> trajectory(lambda x: 2 * x, jnp.ones(()), 3)
        Array([1., 2., 4., 8.], dtype=float32)
    """

    def forward(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        x = step(x)
        return x, x

    _, later = jax.lax.scan(forward, x, None, length=n)
    return jnp.concatenate([x[None], later])
