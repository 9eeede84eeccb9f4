"""A posterior straightened by its own physics: conditional Gauss–Newton, one whitened axis after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vardax_flax.ops.gauss_newton import Laplace
from vardax_flax.ops.guard import finite_cotangents
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import cholesky_solve, principal_axes, solve_upper

Residual = Callable[[jax.Array], jax.Array]
WALKED = 8  # components; a larger state is mapped by its Laplace approximation alone
SUBSTEPS = 2  # on the way from a conditional mode to the value of its axis; on Lorenz-63 one leaves four times as many states behind


class Frame(NamedTuple):
    """Axes u that whiten a Laplace approximation: x = mode + columns u, u = rows (x − mode).

    Args:
        x: the mode `(dim,)`.
        columns: `(dim, dim)`; their outer product is the covariance.
        rows: the inverse `(dim, dim)`.
        log_det: log |det rows|.
    """

    x: jax.Array
    columns: jax.Array
    rows: jax.Array
    log_det: jax.Array

    @property
    def sd(self) -> jax.Array:
        """Standard deviation of each component of x `(*batch, dim)`."""
        return jnp.sqrt(jnp.square(self.columns).sum(axis=-1))


@full_precision
def whitening_frame(laplace: Laplace) -> Frame:
    """The principal axes of a small state, widest first; the triangular factor of the precision of a larger one.

    Example:
        >>> frame = whitening_frame(gauss_newton(residual, guess, stages))
    """
    x, factor = laplace
    if x.size > WALKED:
        columns = solve_upper(factor, jnp.eye(x.size, dtype=x.dtype))
        return Frame(x, columns, factor, jnp.log(jnp.diagonal(factor)).sum())
    axes, values = principal_axes(factor)
    return Frame(x, axes / values, (axes * values).T, jnp.log(values).sum())


@full_precision
def to_normal(residual: Residual, frame: Frame, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z of a state x `(dim,)`, roughly standard normal when x has density ∝ exp(−½‖r(x)‖²), and log |dz/dx|.

    With u = whitened coordinates of x along the principal axes, z₁ = u₁ and zᵢ = (uᵢ − mᵢ(u₍<ᵢ₎)) / sᵢ(u₍<ᵢ₎): the mode and the spread
    of axis i given the wider ones and with the thinner ones integrated out, by Gauss–Newton on the true residual. Exact for a linear
    residual; for a nonlinear one it follows the thin, bent sheet on which a chaotic window's posterior lies. It is a bijection whatever
    the residual, because m and s depend on u₍<ᵢ₎ alone. Above `WALKED` components z = u, the Laplace approximation itself: there the
    walk, whose model runs grow with the square of their number, would cost too much.

    Reference: Rosenblatt 1952, *Remarks on a multivariate transformation*; triangular maps for inference: Marzouk et al. 2016.

    Args:
        residual: r, `(dim,) → (m,)`.
        frame: from `whitening_frame`.
        x: the state.

    Example:
        >>> z, log_det = to_normal(residual, frame, x)
    """
    u = frame.rows @ (x - frame.x)
    if u.size > WALKED:
        return u, frame.log_det
    z, _, log_scale = _walk(residual, frame, u, inverse=False)
    return z, frame.log_det - log_scale


@full_precision
def from_normal(residual: Residual, frame: Frame, z: jax.Array) -> jax.Array:
    """The state x `(dim,)` of z: the inverse of `to_normal`, at the same cost.

    Example:
        >>> draw = from_normal(residual, frame, jax.random.normal(key, (3,)))
    """
    u = z if z.size > WALKED else _walk(residual, frame, z, inverse=True)[1]
    return frame.x + frame.columns @ u


def _walk(residual: Residual, frame: Frame, given: jax.Array, *, inverse: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """z, u and Σ log sᵢ from u, or from z if `inverse`."""
    dim = given.size
    z, u, log_scale = [given[0]], [given[0]], jnp.zeros((), given.dtype)
    point = jnp.zeros_like(given)  # the axes so far at their values, the others at their mode given those
    for i in range(1, dim):  # not a scan: axis i needs the tangents of the thinner axes only, and the state is small
        point, scale = _follow(residual, frame.x, frame.columns, point, u[-1] - point[i - 1], i)
        u.append(point[i] + scale * given[i] if inverse else given[i])
        z.append(given[i] if inverse else (given[i] - point[i]) / scale)
        log_scale = log_scale + jnp.log(scale)
    return jnp.stack(z), jnp.stack(u), log_scale


def _follow(residual: Residual, origin: jax.Array, columns: jax.Array, point: jax.Array, move: jax.Array, i: int) -> tuple:
    """Moves axis i − 1, lets the axes from i on follow to their conditional mode, and returns that point and the spread of axis i."""

    def step(point: jax.Array, part: jax.Array, first: int) -> tuple[jax.Array, jax.Array]:
        """One Gauss–Newton step of the axes from i on, while axis i − 1 moves by `part`."""
        center, tangents, part = finite_cotangents((origin + columns @ point, columns[:, first:].T, part))
        values, jacobian = jax.vmap(lambda tangent: jax.jvp(residual, (center,), (tangent,)), out_axes=(None, 1))(tangents)
        moved, free = jacobian[:, : i - first], jacobian[:, i - first :]
        precision = free.T @ free
        ahead, _ = cholesky_solve(precision, -free.T @ (values + moved @ part))
        new = point.at[first:].add(jnp.concatenate([part, ahead]))
        # Where the model overflows, or the precision is lost to rounding far from the mode, the point stays and the spread is that of the
        # mode. An orthogonal factorisation would go on there, with spreads of hundreds, and draws as far away.
        whole = jnp.isfinite(new).all() & jnp.isfinite(precision).all()
        return jnp.where(whole, new, point), jnp.where(whole, precision, jnp.eye(precision.shape[0], dtype=precision.dtype))

    part = move[None] / SUBSTEPS
    point, _ = jax.lax.scan(lambda p, _: (step(p, part, i - 1)[0], None), point, length=SUBSTEPS)
    point, precision = step(point, jnp.zeros((0,), point.dtype), i)
    first = jnp.zeros(precision.shape[0], precision.dtype).at[0].set(1)
    return point, jnp.sqrt(cholesky_solve(precision, first)[1])
