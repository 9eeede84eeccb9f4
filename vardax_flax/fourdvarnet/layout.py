"""Which axes of a state a network convolves along, and which are its channels."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from vardax_flax.core.config import check_choices, require

Axes = Literal["time", "space", "space-time"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A state `(sites,)`, `(time, sites)`, `(time, height, width)` or `(time, variable, height, width)` as a grid with channels last.

    Args:
        state: shape of one state; of a single axis it is a ring or a line of sites, and `axes` is "space".
        axes: "time" makes everything else channels, "space" the times and variables, "space-time" the variables only.
        periodic: whether space is; time is not.

    Raises:
        ConfigError: a state of another number of axes.

    Example:
        >>> Layout((200, 40), "space-time", periodic=True).to_grid(jnp.zeros((8, 200, 40))).shape
        (8, 200, 40, 1)
    """

    state: tuple[int, ...]
    axes: Axes
    periodic: bool

    def __post_init__(self) -> None:
        check_choices(self)
        expected = "a state (sites,), (time, sites), (time, height, width) or (time, variable, height, width)"
        require(1 <= len(self.state) <= 4, expected, self.state, "simulate one of these shapes")
        timeless = len(self.state) > 1 or self.axes == "space"
        require(timeless, 'axes="space" for a state without a time axis', self.axes, "pick it, or simulate trajectories")

    @property
    def grid(self) -> tuple[int, ...]:
        """The axes of a state that are a grid."""
        space = {1: (0,), 2: (1,), 3: (1, 2), 4: (2, 3)}[len(self.state)]
        return {"time": (0,), "space": space, "space-time": (0, *space)}[self.axes]

    @property
    def others(self) -> tuple[int, ...]:
        """The axes of a state that are channels."""
        return tuple(axis for axis in range(len(self.state)) if axis not in self.grid)

    @property
    def channels(self) -> int:
        """Their number together."""
        return math.prod(self.state[axis] for axis in self.others)

    @property
    def padding(self) -> tuple[str, ...]:
        """Of each axis of the grid."""
        time = 0 if len(self.state) > 1 else None
        return tuple("CIRCULAR" if self.periodic and axis != time else "SAME" for axis in self.grid)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """One scale for each variable: broadcasts against a state."""
        if len(self.state) == 4:
            return (self.state[1], 1, 1)
        return (self.state[1],) if self._one_each else ()

    @property
    def _one_each(self) -> bool:
        """Whether the components of a series are channels, each with a scale of its own."""
        return len(self.state) == 2 and self.axes == "time"

    def rows(self, x: jax.Array) -> jax.Array:
        """Samples of each variable `(n, *scale_shape)`."""
        if len(self.state) == 4:
            return jnp.moveaxis(x, -3, -1).reshape(-1, self.state[1], 1, 1)
        return x.reshape(-1, self.state[1]) if self._one_each else x.reshape(-1)

    def lead(self, x: jax.Array) -> int:
        """How many axes of `(*batch, *state)` are not of the state."""
        return x.ndim - len(self.state)

    def grid_sizes(self, x: jax.Array) -> tuple[int, ...]:
        """Of `(*batch, *state)` along the axes of the grid."""
        return tuple(x.shape[self.lead(x) + axis] for axis in self.grid)

    def to_grid(self, x: jax.Array) -> jax.Array:
        """`(*batch, *state)` → `(*batch, *grid, channels)`, of any size along the grid."""
        lead = self.lead(x)
        x = jnp.transpose(x, (*range(lead), *(lead + axis for axis in self.grid + self.others)))
        return x.reshape(*x.shape[: lead + len(self.grid)], -1)

    def from_grid(self, h: jax.Array) -> jax.Array:
        """The inverse of `to_grid`, of the same sizes."""
        lead = h.ndim - len(self.grid) - 1
        h = h.reshape(*h.shape[:-1], *(self.state[axis] for axis in self.others))
        order = self.grid + self.others
        return jnp.transpose(h, (*range(lead), *(lead + order.index(axis) for axis in range(len(self.state)))))
