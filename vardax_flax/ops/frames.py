"""Coordinates in which a Laplace approximation is a standard normal, and the map into them that goes no further."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vardax_flax.ops.gauss_newton import Laplace
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import solve_upper

Residual = Callable[[jax.Array], jax.Array]


class Bend(NamedTuple):
    """How a posterior departs from its Laplace approximation, to third order (see `ops.cubic`).

    Args:
        shift: `(dim,)`.
        curve: `(dim, dim, dim)`, of each axis along two wider ones.
        stretch: `(dim, dim)`, of each axis along a wider one.
    """

    shift: jax.Array
    curve: jax.Array
    stretch: jax.Array


class Frame(NamedTuple):
    """Axes u that whiten a Laplace approximation: x = mode + columns u, u = rows (x − mode).

    Args:
        x: the mode `(dim,)`.
        columns: `(dim, dim)`; their outer product is the covariance.
        rows: the inverse `(dim, dim)`.
        log_det: log |det rows|.
        bend: departures from it, where the map has them.
    """

    x: jax.Array
    columns: jax.Array
    rows: jax.Array
    log_det: jax.Array
    bend: Bend | None = None

    @property
    def sd(self) -> jax.Array:
        """Standard deviation of each component of x `(*batch, dim)`."""
        return jnp.sqrt(jnp.square(self.columns).sum(axis=-1))

    @property
    def lengths(self) -> jax.Array:
        """Standard deviation along each axis, in the units of x `(*batch, dim)`."""
        return jnp.sqrt(jnp.square(self.columns).sum(axis=-2))


class Straightening(NamedTuple):
    """One way to map a posterior ∝ exp(−½‖r(x)‖²) to roughly a standard normal.

    Args:
        frame: `(r, Laplace) → Frame`, once for each observation.
        to_normal: `(r, frame, x) → z, log |dz/dx|`.
        from_normal: `(r, frame, z) → x`, its inverse.
    """

    frame: Callable[[Residual, Laplace], Frame]
    to_normal: Callable[[Residual, Frame, jax.Array], tuple[jax.Array, jax.Array]]
    from_normal: Callable[[Residual, Frame, jax.Array], jax.Array]


@full_precision
def _frame(residual: Residual, laplace: Laplace) -> Frame:
    x, factor = laplace
    columns = solve_upper(factor, jnp.eye(x.size, dtype=x.dtype))
    return Frame(x, columns, factor, jnp.log(jnp.diagonal(factor)).sum())


@full_precision
def _to_normal(residual: Residual, frame: Frame, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return frame.rows @ (x - frame.x), frame.log_det


@full_precision
def _from_normal(residual: Residual, frame: Frame, z: jax.Array) -> jax.Array:
    return frame.x + frame.columns @ z


LINEAR = Straightening(_frame, _to_normal, _from_normal)
"""z = R (x − mode): the Laplace approximation itself."""
