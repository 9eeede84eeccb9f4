"""A posterior straightened by its own physics: conditional Gauss–Newton, one whitened axis after the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vardax_flax.ops.frames import Frame, Residual, Straightening
from vardax_flax.ops.gauss_newton import Laplace
from vardax_flax.ops.guard import finite_cotangents
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import cholesky_solve, principal_axes

SUBSTEPS = 2  # on the way from a conditional mode to the value of its axis; on Lorenz-63 one leaves four times as many states behind


@full_precision
def _frame(residual: Residual, laplace: Laplace) -> Frame:
    """The principal axes of the Gauss–Newton precision, widest first."""
    axes, values = principal_axes(laplace.factor)
    return Frame(laplace.x, axes / values, (axes * values).T, jnp.log(values).sum())


@full_precision
def _to_normal(residual: Residual, frame: Frame, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    z, _, log_scale = _walk(residual, frame, frame.rows @ (x - frame.x), inverse=False)
    return z, frame.log_det - log_scale


@full_precision
def _from_normal(residual: Residual, frame: Frame, z: jax.Array) -> jax.Array:
    return frame.x + frame.columns @ _walk(residual, frame, z, inverse=True)[1]


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
        center, tangents, part = finite_cotangents((origin + columns @ point, columns[:, first:], part))
        values, jacobian = jax.vmap(lambda tangent: jax.jvp(residual, (center,), (tangent,)), in_axes=1, out_axes=(None, 1))(tangents)
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


WALK = Straightening(_frame, _to_normal, _from_normal)
"""z₁ = u₁, zᵢ = (uᵢ − mᵢ(u₍<ᵢ₎)) / sᵢ(u₍<ᵢ₎), u the whitened coordinates along the principal axes.

mᵢ and sᵢ are the mode and the spread of axis i given the wider ones and with the thinner ones integrated out, by Gauss–Newton on the true
residual. Exact for a linear residual; for a nonlinear one it follows the thin, bent sheet on which a chaotic window's posterior lies. It
is a bijection whatever the residual, because m and s depend on u₍<ᵢ₎ alone. A draw costs model runs whose number grows with the square of
the number of components.

Reference: Rosenblatt 1952, *Remarks on a multivariate transformation*; triangular maps for inference: Marzouk et al. 2016.
"""
