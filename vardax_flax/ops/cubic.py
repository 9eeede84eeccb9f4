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
    """Principal axes of the Hessian H of ½‖r‖² at the mode, widest first, and its third derivatives T along them."""
    x, factor = laplace
    x = finite_cotangents(x)
    slope, precision, change, third = _derivatives(residual, x)
    # where the model overflows in its derivatives, the Gauss–Newton precision is what is left
    whole = jnp.isfinite(change).all() & jnp.isfinite(third).all()
    change, third = jnp.where(whole, change, 0), jnp.where(whole, third, 0)
    hessian = precision + change
    axes, _ = principal_axes(hessian + jnp.trace(precision) / x.size * jnp.eye(x.size, dtype=x.dtype))  # singular vectors know no sign
    along = jnp.einsum("ia,ij,ja->a", axes, hessian, axes)
    scale = jnp.sqrt(jnp.maximum(along, FLOOR * jnp.square(factor @ axes).sum(axis=0)))
    columns = axes / scale
    third = jnp.einsum("ijk,ia,jb,kc->abc", third, columns, columns, columns)
    third = third * jnp.minimum(1, LIMIT / jnp.sqrt(jnp.square(third).sum() + jnp.finfo(x.dtype).tiny))
    wider = jnp.tril(jnp.ones((x.size, x.size), x.dtype), -1)
    stretch = 0.5 * jnp.einsum("iij->ij", third) * wider
    curve = -0.5 * third * wider[:, :, None] * wider[:, None, :]
    bend = Bend(-stretch.sum(axis=0) - jnp.clip(columns.T @ slope, -1, 1), curve, stretch)
    return Frame(x, columns, (axes * scale).T, jnp.log(scale).sum(), bend)


def _derivatives(residual: Residual, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Jᵀr, JᵀJ, Σ r ∇²r and the symmetric sum of ⟨∂ᵢr, ∂ⱼₖr⟩: the derivatives of ½‖r‖² without that in ∂ᵢⱼₖr."""
    eye = jnp.eye(x.size, dtype=x.dtype)

    def along(tangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(residual, (x,), (tangent,))

    def twice(one: jax.Array, other: jax.Array) -> jax.Array:
        return jax.jvp(lambda x: jax.jvp(residual, (x,), (one,))[1], (x,), (other,))[1]

    # tangents as columns: what is done to a component is done to all of them at once, five times as fast on a CPU
    values, jacobian = jax.vmap(along, in_axes=1, out_axes=(None, 1))(eye)
    i, j = np.triu_indices(x.size)
    second = jax.vmap(twice, in_axes=1, out_axes=1)(eye[:, i], eye[:, j])  # (m, pairs)

    def symmetric(pairs: jax.Array) -> jax.Array:
        full = jnp.zeros((*pairs.shape[:-1], x.size, x.size), x.dtype).at[..., i, j].set(pairs)
        return full.at[..., j, i].set(pairs)

    third = symmetric(jacobian.T @ second)
    third = third + third.transpose(1, 0, 2) + third.transpose(2, 1, 0)
    return jacobian.T @ values, jacobian.T @ jacobian, symmetric(values @ second), third


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

With u the coordinates along the principal axes of H, ½‖r‖² = ½‖u‖² + ⅙ T[u, u, u] + …: the terms uᵢ uⱼ uₖ and uᵢ² uⱼ, j, k < i, are what
mᵢ = −½ Σ Tᵢⱼₖ uⱼ uₖ and gᵢ = ½ Σ Tᵢᵢⱼ uⱼ take away, and the latter leaves −Σᵢ gᵢ, which a shift takes away. The skewness of an axis by
itself (uᵢ³) is left. It is a bijection whatever T, because m and g depend on the wider axes alone. A frame costs dim² / 2 second
derivatives of the model; a draw costs none of them, but dim³ multiplications.

Reference: Spantini, Bigoni & Marzouk 2018, *Inference via low-dimensional couplings*, for triangular maps.
"""
