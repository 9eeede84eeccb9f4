"""A posterior straightened to third order: how its narrow axes bend and stretch along the wider ones, in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.ops.frames import Bend, Frame, Residual, Straightening
from vardax_flax.ops.gauss_newton import Laplace
from vardax_flax.ops.guard import finite_cotangents
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import principal_axes

FLOOR = 0.3  # least precision along an axis, as a share of the Gauss–Newton one: beyond, the Hessian says nothing of the width
LIMIT = 3.5  # largest norm of the third derivatives; on Lorenz-96 that of 19 in 20 windows is smaller, and the others would overshoot
REACH = 5.0  # standard deviations up to which an axis bends the narrower ones


@full_precision
def _frame(residual: Residual, laplace: Laplace) -> Frame:
    """Principal axes of the Gauss–Newton precision, widest first, whitened by the Hessian, and the third derivatives along them.

    The Hessian is taken along the axes that whiten JᵀJ, where it is I plus something of order one: formed in x, the narrow axes would drown
    the wide ones in rounding.
    """
    x, factor = laplace
    x = finite_cotangents(x)
    axes, values = principal_axes(factor)
    eye = jnp.eye(x.size, dtype=x.dtype)
    slope, change, third = _derivatives(residual, x, axes / values)
    # where the model overflows in its derivatives, the Gauss–Newton precision is what is left
    whole = jnp.isfinite(change).all() & jnp.isfinite(third).all()
    change, third = jnp.where(whole, change, 0), jnp.where(whole, third, 0)
    turn, _ = principal_axes(2 * eye + change)  # H + I: singular vectors know no sign
    curvature = jnp.maximum(1 + jnp.einsum("ia,ij,ja->a", turn, change, turn), FLOOR)
    narrow, widen = (turn * jnp.sqrt(curvature)) @ turn.T, (turn / jnp.sqrt(curvature)) @ turn.T
    third = jnp.einsum("ijk,ia,jb,kc->abc", third, widen, widen, widen)
    third = third * (LIMIT / jnp.sqrt(jnp.maximum(jnp.square(third).sum(), LIMIT**2)))
    wider = jnp.tril(jnp.ones((x.size, x.size), x.dtype), -1)
    stretch = 0.5 * jnp.einsum("iij->ij", third) * wider
    curve = -0.5 * third * wider[:, :, None] * wider[:, None, :]
    bend = Bend(-stretch.sum(axis=0) - jnp.clip(widen @ slope, -1, 1), curve, stretch)
    log_det = jnp.log(values).sum() + 0.5 * jnp.log(curvature).sum()
    return Frame(x, (axes / values) @ widen, narrow @ (axes * values).T, log_det, bend)


def _derivatives(residual: Residual, x: jax.Array, axes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of ½‖r‖² along axes (columns): ⟨r, ∂ᵢr⟩; of its second derivatives ⟨r, ∂ᵢⱼr⟩; of its third the sum of ⟨∂ᵢr, ∂ⱼₖr⟩ over the i."""

    def along(tangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(residual, (x,), (tangent,))

    def twice(one: jax.Array, other: jax.Array) -> jax.Array:
        return jax.jvp(lambda x: jax.jvp(residual, (x,), (one,))[1], (x,), (other,))[1]

    # tangents as columns: what is done to a component is done to all of them at once, five times as fast on a CPU
    values, jacobian = jax.vmap(along, in_axes=1, out_axes=(None, 1))(axes)
    i, j = np.triu_indices(x.size)
    second = jax.vmap(twice, in_axes=1, out_axes=1)(axes[:, i], axes[:, j])  # (m, pairs)

    def symmetric(pairs: jax.Array) -> jax.Array:
        full = jnp.zeros((*pairs.shape[:-1], x.size, x.size), x.dtype).at[..., i, j].set(pairs)
        return full.at[..., j, i].set(pairs)

    third = symmetric(jacobian.T @ second)
    return jacobian.T @ values, symmetric(values @ second), third + third.transpose(1, 0, 2) + third.transpose(2, 1, 0)


@full_precision
def _to_normal(residual: Residual, frame: Frame, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    u = frame.rows @ (x - frame.x)
    reached = jnp.clip(u, -REACH, REACH)
    assert frame.bend is not None
    shift, curve, stretch = frame.bend
    log_scale = jnp.tanh(stretch @ reached)
    z = (u - shift - jnp.einsum("ijk,j,k->i", curve, reached, reached)) * jnp.exp(log_scale)
    return z, frame.log_det + log_scale.sum()


@full_precision
def _from_normal(residual: Residual, frame: Frame, z: jax.Array) -> jax.Array:
    assert frame.bend is not None
    shift, curve, stretch = frame.bend

    def axis(u: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        reached = jnp.clip(u, -REACH, REACH)  # the axes not yet known have no weight
        here = shift[i] + reached @ curve[i] @ reached + z[i] * jnp.exp(-jnp.tanh(stretch[i] @ reached))
        return u.at[i].set(here), None

    u, _ = jax.lax.scan(axis, jnp.zeros_like(z), jnp.arange(z.size))
    return frame.x + frame.columns @ u


CUBIC = Straightening(_frame, _to_normal, _from_normal)
"""zᵢ = (uᵢ − mᵢ(u₍<ᵢ₎)) e^{gᵢ(u₍<ᵢ₎)}, m quadratic and g linear in the wider axes: a triangular map, exact to first order in T.

With u the coordinates that whiten the Hessian, ½‖r‖² = ½‖u‖² + ⅙ T[u, u, u] + …: the terms uᵢ uⱼ uₖ and uᵢ² uⱼ, j, k < i, are what
mᵢ = −½ Σ Tᵢⱼₖ uⱼ uₖ and gᵢ = ½ Σ Tᵢᵢⱼ uⱼ take away, and the latter leaves −Σᵢ gᵢ, which a shift takes away. Two parts are left to the head:
the skewness of an axis by itself (uᵢ³), and ⟨r, ∂ᵢⱼₖr⟩ in T, which is small where the residual is. It is a bijection whatever T, because m
and g depend on the wider axes alone. A frame costs dim² / 2 second derivatives of the model; a draw costs none of them, but dim³
multiplications.

Reference: Spantini, Bigoni & Marzouk 2018, *Inference via low-dimensional couplings*, for triangular maps.
"""
