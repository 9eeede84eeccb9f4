"""Observation operators: from a state to what an instrument would read of it without noise. Any differentiable callable is one too."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.config import ConfigError, require
from vardax_flax.ops.precision import full_precision

ObsOp = Callable[[jax.Array], jax.Array]


class Tangent(NamedTuple):
    """An operator to first order around a state.

    Args:
        value: H(x).
        push: v ↦ H' v, the tangent linear.
        pull: w ↦ H'ᵀ w, the adjoint.
    """

    value: jax.Array
    push: Callable[[jax.Array], jax.Array]
    pull: Callable[[jax.Array], jax.Array]


def linearize(operator: ObsOp, x: jax.Array) -> Tangent:
    """Value, tangent linear and adjoint of any differentiable operator at x.

    Example:
        >>> tangent = linearize(jnp.square, jnp.array([3.0]))
        >>> tangent.push(jnp.ones(1))
        Array([6.], dtype=float32)
    """
    value, push = jax.linearize(operator, x)
    return Tangent(value, push, lambda w: jax.linear_transpose(push, x)(w)[0])


class ObservationOperator(abc.ABC):
    """Interface of an observation operator H, which acts on one state."""

    @abc.abstractmethod
    def __call__(self, state: jax.Array) -> jax.Array:
        """H(x)."""

    def linearize(self, state: jax.Array) -> Tangent:
        """H to first order around a state."""
        return linearize(self, state)


class Identity(ObservationOperator):
    """Every component is observed; what is missing is said by the mask.

    Example:
        >>> Identity()(jnp.ones(3)).shape
        (3,)
    """

    def __call__(self, state: jax.Array) -> jax.Array:
        return state


class Linear(ObservationOperator):
    """H(x) = A x of the flat state: a selection, an average, an averaging kernel with its prior profile c: A x + c.

    Args:
        matrix: A `(obs, size)`.
        offset: c `(obs,)`; for the averaging kernel K of a retrieval around x_r, c = (I − K) x_r (Rodgers 2000, *Inverse methods for
            atmospheric sounding*).

    Raises:
        ConfigError: matrix and offset of different sizes.

    Example:
        >>> Linear(jnp.eye(3)[:1])(jnp.arange(3.0))
        Array([0.], dtype=float32)
    """

    def __init__(self, matrix: Any, offset: Any = None) -> None:
        self.matrix = jnp.asarray(matrix)
        require(self.matrix.ndim == 2, "a matrix (obs, size)", self.matrix.shape, "pass one row for each observation")
        self.offset = jnp.zeros(self.matrix.shape[0], self.matrix.dtype) if offset is None else jnp.asarray(offset)
        rows = self.matrix.shape[:1]
        require(self.offset.shape == rows, f"an offset {rows}", self.offset.shape, "pass one for each row")

    @full_precision
    def __call__(self, state: jax.Array) -> jax.Array:
        if state.size != self.matrix.shape[1]:
            raise ConfigError(
                f"expected a state of {self.matrix.shape[1]} components, got {state.size}; do pass a matrix for that state"
            )
        return self.matrix @ state.reshape(-1) + self.offset


class Interpolation(ObservationOperator):
    """The state at points between the cells of its grid, linearly along each axis.

    Args:
        points: `(obs, axes)` in cells from 0.
        periodic: whether cell n is cell 0; otherwise points outside take the value at the border.

    Example:
        >>> Interpolation([[0.5]])(jnp.array([1.0, 2.0, 3.0]))
        Array([1.5], dtype=float32)
    """

    def __init__(self, points: Any, periodic: bool = False) -> None:
        self.points = np.asarray(points, np.float64)
        require(self.points.ndim == 2, "points (obs, axes)", self.points.shape, "pass one row for each point")
        require(bool(np.isfinite(self.points).all()), "finite points", "NaN or infinity", "drop them")
        self.periodic = periodic

    def __call__(self, state: jax.Array) -> jax.Array:
        axes = self.points.shape[1]
        if state.ndim != axes:
            raise ConfigError(f"expected a state of {axes} axes, as the points have, got shape {state.shape}; do pass points of that many")
        sizes = np.array(state.shape)
        points = self.points if self.periodic else np.clip(self.points, 0, sizes - 1)
        low = np.floor(points).astype(int)
        share = points - low
        value = jnp.zeros(len(points), state.dtype)
        for corner in np.ndindex(*(2,) * axes):
            cell = low + corner
            cell = cell % sizes if self.periodic else np.minimum(cell, sizes - 1)
            weight = np.where(np.array(corner) == 1, share, 1 - share).prod(axis=1)
            value = value + weight.astype(state.dtype) * state[tuple(cell.T)]
        return value


class Fusion(ObservationOperator):
    """Several instruments at once: their readings, flat, one after the other; their errors are one block of R each (`Blocks`).

    Args:
        instruments: an operator for each.

    Example:
        >>> Fusion([Identity(), Linear(jnp.ones((1, 3)) / 3)])(jnp.ones(3)).shape
        (4,)
    """

    def __init__(self, instruments: Sequence[ObsOp]) -> None:
        require(len(instruments) > 0, "at least one instrument", 0, "pass its operator")
        self.instruments = tuple(instruments)

    def __call__(self, state: jax.Array) -> jax.Array:
        return jnp.concatenate([instrument(state).reshape(-1) for instrument in self.instruments])


def require_linear(operator: ObsOp, shape: tuple[int, ...]) -> None:
    """Check on three random states that an operator is affine.

    Raises:
        ConfigError: it is not.

    Example:
        >>> require_linear(Identity(), (3,))
    """
    rng = np.random.default_rng(0)
    a, b, origin = (jnp.asarray(scale * rng.normal(size=shape), jnp.result_type(float)) for scale in (1.0, 1.0, 0.0))
    bend = operator(a + b) - operator(a) - operator(b) + operator(origin)
    size = max(float(jnp.abs(operator(a)).max()), float(jnp.abs(operator(origin)).max()), 1e-30)
    worst = float(jnp.abs(bend).max()) / size
    require(
        worst < 1e3 * float(jnp.finfo(a.dtype).eps), "a linear observation operator",
        f"one that bends by {worst:.2g} of its size", "use ThreeDVar, which iterates",
    )  # fmt: skip
