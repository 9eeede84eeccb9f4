"""Gauss–Newton on a weak-constraint cost: each iteration is a Kalman filter and smoother around the latest trajectory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import UNROLLED, cholesky, solve_lower

Step = Callable[[jax.Array], jax.Array]


def _seen(mean: jax.Array, cov: jax.Array, y: jax.Array, root: jax.Array) -> Any:
    """N(mean, cov) given y = x + N(0, 1 / root²) of each component, and what the way back needs of it."""
    lower = cholesky(jnp.eye(len(mean), dtype=cov.dtype) + root[:, None] * cov * root)
    gain = solve_lower(lower, root[:, None] * cov)
    innovation = solve_lower(lower, root * (y - mean))
    return mean + gain.T @ innovation, cov - gain.T @ gain, lower, gain, innovation


def _unseen(mean: jax.Array, cov: jax.Array, y: jax.Array, root: jax.Array) -> Any:
    """The same of no observation."""
    return mean, cov, jnp.eye(len(mean), dtype=cov.dtype), jnp.zeros_like(cov), jnp.zeros_like(mean)


def _update(state: Any, y: jax.Array, precision: jax.Array) -> tuple[Any, Any]:
    """The state after an observation, and what is kept of it."""
    root = jnp.sqrt(precision)
    rows: Any = (*state, y, root)
    # small states are solved many at a time, where both branches would be computed anyway
    small = len(state[0]) <= UNROLLED
    mean, cov, *kept = _seen(*rows) if small else jax.lax.cond((root > 0).any(), _seen, _unseen, *rows)
    return (mean, cov), (mean, cov, root, *kept)


@full_precision
def smoother_step(
    step: Step, x: jax.Array, y: jax.Array, precision: jax.Array, mean: jax.Array, cov: jax.Array, model_std: jax.Array
) -> jax.Array:
    """The minimum of the weak-constraint cost with the model linearised around a trajectory: one Gauss–Newton step.

    J(x) = ½‖x₀ − mean‖²_{cov⁻¹} + ½ Σ_t ‖x_t − y_t‖²_{precision} + ½ Σ_t ‖x_{t+1} − M(x_t)‖² / q²
    by a Kalman filter forwards (Bell 1994, *The iterated Kalman smoother as a Gauss–Newton method*) and the adjoint recursion of Bryson
    & Frazier 1963 backwards, which inverts no covariance of a state: it is well conditioned for any model error, 0 included.

    Args:
        step: M, one state `(n,)` → the next.
        x: trajectory to linearise around `(times, n)`.
        y, precision: observations and their inverse variances `(times, n)`, 0 where there is none.
        mean, cov: of the first state, `(n,)` and `(n, n)`.
        model_std: q, in the units of the state, for each step.

    Returns:
        The trajectory `(times, n)`.
    """
    tangent = jax.vmap(jax.jacfwd(step))(x[:-1])
    offset = jax.vmap(step)(x[:-1]) - jnp.einsum("tij,tj->ti", tangent, x[:-1])
    eye = jnp.eye(x.shape[-1], dtype=x.dtype)
    noise = jnp.square(model_std) * eye

    def forward(state: Any, row: Any) -> tuple[Any, Any]:
        tangent, offset, y, precision = row
        mean, cov = state
        ahead = tangent @ cov @ tangent.T + noise
        # what is not symmetric in it would grow from step to step: an update takes from the symmetric part only
        return _update((tangent @ mean + offset, (ahead + ahead.T) / 2), y, precision)

    def backward(adjoint: jax.Array, row: Any) -> tuple[jax.Array, jax.Array]:
        tangent, mean, cov, root, lower, gain, innovation = row
        adjoint = tangent.T @ adjoint
        state = mean - cov @ adjoint
        return adjoint - root * solve_lower(lower, gain @ adjoint + innovation, transposed=True), state

    state, first = _update((mean, cov), y[0], precision[0])
    _, rest = jax.lax.scan(forward, state, (tangent, offset, y[1:], precision[1:]))
    kept = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    # nothing follows the last state, whose adjoint is 0 whatever the tangent
    tangents = jnp.concatenate([tangent, jnp.zeros_like(eye)[None]])
    _, states = jax.lax.scan(backward, jnp.zeros_like(mean), (tangents, *kept), reverse=True)
    return states


@full_precision
def weak_cost(
    step: Step, x: jax.Array, y: jax.Array, precision: jax.Array, mean: jax.Array, cov: jax.Array, model_std: jax.Array
) -> jax.Array:
    """J of `smoother_step` at a trajectory, without unit; `model_std` > 0."""
    start = solve_lower(cholesky(cov), x[0] - mean)
    jump = (x[1:] - jax.vmap(step)(x[:-1])) / model_std
    return 0.5 * (jnp.square(start).sum() + (precision * jnp.square(x - y)).sum() + jnp.square(jump).sum())


def iterated_smoother(
    step: Step, x: jax.Array, y: jax.Array, precision: jax.Array, mean: jax.Array, cov: jax.Array, model_std: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`smoother_step` once for each of the model errors `model_std` `(iterations,)`, from large to small; and J at the last of them.

    A large model error first lets observations pull a trajectory off a wrong course; a small one at the end makes it one of the model.
    """

    def iterate(x: jax.Array, std: jax.Array) -> tuple[jax.Array, None]:
        return smoother_step(step, x, y, precision, mean, cov, std), None

    x, _ = jax.lax.scan(iterate, x, model_std)
    return x, weak_cost(step, x, y, precision, mean, cov, model_std[-1])
