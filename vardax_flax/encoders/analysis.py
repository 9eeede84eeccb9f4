"""A classical variational analysis inside the network: the head models only how the posterior departs from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, require
from vardax_flax.core.interfaces import Encoded, LeastSquares, LocatingEncoder, Simulator
from vardax_flax.encoders.innovation import InnerConfig, InnovationEncoder, build_innovation
from vardax_flax.encoders.inputs import without_hidden
from vardax_flax.encoders.vector import MLPEncoderConfig
from vardax_flax.nn import Standardizer
from vardax_flax.ops.blocks import map_blocks
from vardax_flax.ops.cubic import CUBIC
from vardax_flax.ops.frames import LINEAR, Frame
from vardax_flax.ops.gauss_newton import gauss_newton
from vardax_flax.ops.guard import finite_cotangents
from vardax_flax.ops.rosenblatt import WALK
from vardax_flax.ops.tails import compress_tails, expand_tails

STAGES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.0)  # share of the window in each step: on Lorenz-63 it misses the mode in 1 of 1000 windows
NEAR = 4  # steps from a state that is near a mode
BOUND = 6.0  # standard deviations beyond which the map counts as lost: on Lorenz-63 one state in two thousand
WALKED, BENT = 8, 64  # components up to which a state is walked, and up to which it is mapped to third order
LANES, ACCELERATED = 2**15, 2**22  # worked on at once: few enough for the cache of a CPU, enough to fill an accelerator


class AnalysisEncoder(LocatingEncoder):
    """context = inner(y, d, x_a, x_b) around the analysis x_a = argmin ½‖r(x)‖², and a map that straightens the posterior around it.

    Gauss–Newton from the background on a window that grows finds the mode (see `ops.gauss_newton`), at seven linearised model runs for each
    component of the state; from there the residual itself maps the posterior to roughly a standard normal, and the head learns what is
    left. Where the model is linear that is nothing. How it is mapped depends on the number of components:

    - up to 8: by conditional Gauss–Newton (`ops.rosenblatt`); a draw costs a dozen model runs for three components and a hundred for eight;
    - up to 64: to third order but for two small terms (`ops.cubic`); an observation costs a model run for each pair of components, a draw
      none;
    - above: by the Laplace approximation alone.

    Everything has derivatives in the observation and the background, those of the mode and its Laplace approximation included; where a
    model overflows, in reverse mode only.

    Args:
        innovation: the inner encoder on observations and innovations.
        residual: r(x, element) of a `LeastSquares` simulator.

    Raises:
        ConfigError: a batch without background.

    Example:
        >>> encoder = AnalysisEncoderConfig().build(simulator.spec, nnx.Rngs(0), simulator)
        >>> context, frame = encoder.locate(batch)
        >>> z, log_det = encoder.to_z(x, batch, frame)
    """

    def __init__(self, innovation: InnovationEncoder, residual: Callable[[jax.Array, Batch], jax.Array]) -> None:
        self.innovation = innovation
        self.residual = residual
        self.state_shape = innovation.state_shape
        size = math.prod(self.state_shape)
        self.log_sd = Standardizer((size,))
        self.walked = size <= WALKED
        self.map = WALK if self.walked else CUBIC if size <= BENT else LINEAR
        self.features = innovation.features + size * (1 + size * self.walked)

    def calibrate(self, batch: Batch) -> None:
        def center_and_sd(batch: Batch) -> tuple[jax.Array, jax.Array]:
            frame = self._analyse(batch)
            return self._center(batch, frame), self._sd(frame)

        center, sd = jax.jit(center_and_sd)(batch)  # compiled, so that the tables of a large state are never all in memory
        self.log_sd.calibrate(jnp.log(sd))
        # a spread that never varies has a logarithm whose rounding must not be blown up
        self.log_sd.std[...] = jnp.where(self.log_sd.std[...] < 1e-3, 1, self.log_sd.std[...])
        self.innovation.calibrate_around(batch, center)

    def locate(self, batch: Batch, start: jax.Array | None = None) -> Encoded:
        """Context and frame; around the lower of two minima, if there is a second `start`."""
        if batch.background is None:
            raise ConfigError("expected a `background` to start the analysis from, got None; do pass Batch(..., background=x_b)")
        frame = self._analyse(batch, start)
        sd = self._sd(frame)
        context = [self.innovation.around(batch, self._center(batch, frame)), self.log_sd(jnp.log(sd))]
        if self.walked:  # the directions of the axes too, of which a larger state has too many
            context.append((frame.columns / sd[..., None, :]).reshape(*sd.shape[:-1], -1))
        return Encoded(jnp.concatenate(context, axis=-1), frame)

    def to_z(self, x: jax.Array, batch: Batch, frame: Frame) -> tuple[jax.Array, jax.Array]:
        z, log_det = self._map(self.map.to_normal, x.reshape(*x.shape[: x.ndim - len(self.state_shape)], -1), batch, frame)
        z, log_slope = compress_tails(z, BOUND, self._reach(frame, z))
        return z, log_det + log_slope.sum(axis=-1)

    def to_x(self, z: jax.Array, batch: Batch, frame: Frame) -> jax.Array:
        x = self._map(self.map.from_normal, expand_tails(z, BOUND, self._reach(frame, z)), batch, frame)
        return x.reshape(*x.shape[:-1], *self.state_shape)

    def _reach(self, frame: Frame, z: jax.Array) -> jax.Array:
        """Standard deviations of each axis in one of the widest: a state that is lost lies that far out along a thin axis."""
        reach = frame.lengths.max(axis=-1, keepdims=True) / frame.lengths
        return reach if z.ndim == reach.ndim else reach[..., None, :]

    def _sd(self, frame: Frame) -> jax.Array:
        """Along the principal axes of a small state, else of each component."""
        return frame.lengths if self.walked else frame.sd

    def _center(self, batch: Batch, frame: Frame) -> jax.Array:
        return frame.x.reshape(batch.background.shape)

    def _flat_residual(self, element: Batch) -> Callable[[jax.Array], jax.Array]:
        element = finite_cotangents(element)  # of a model that overflowed, whose result the map leaves out
        return lambda flat: self.residual(flat.reshape(self.state_shape), element)

    def _elements(self, batch: Batch) -> Batch:
        """The batch with one leading axis and without its target and what is hidden."""
        lead = batch.background.ndim - len(self.state_shape)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[lead:]), without_hidden(batch))

    def _analyse(self, batch: Batch, start: jax.Array | None = None) -> Frame:
        def one(known: tuple[Batch, jax.Array | None]) -> Frame:
            element, start = known

            def residual(flat: jax.Array, mask: jax.Array) -> jax.Array:
                return self._flat_residual(element._replace(mask=mask))(flat)

            laplace = gauss_newton(residual, element.background.reshape(-1), _growing(element.mask))
            if start is not None:
                near = gauss_newton(residual, start, jnp.broadcast_to(element.mask, (NEAR, *element.mask.shape)))
                costs = [jnp.square(residual(found.x, element.mask)).sum() for found in (near, laplace)]
                # of two minima the lower one; one that is no number is not lower
                laplace = jax.tree.map(lambda a, b: jnp.where(costs[0] < costs[1], a, b), near, laplace)
            return self.map.frame(self._flat_residual(element), laplace)

        elements = self._elements(batch)
        size = self.log_sd.mean[...].size
        flat = None if start is None else start.reshape(-1, size)
        found = _map_some(one, (elements, flat), size**3 if self.map is CUBIC else size)
        lead = batch.background.shape[: batch.background.ndim - len(self.state_shape)]
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), found)

    def _map(self, function: Callable[..., Any], values: jax.Array, batch: Batch, frame: Frame) -> Any:
        """`to_normal` or `from_normal` of the map over `(*batch, dim)` or `(*batch, n, dim)`, some draws at a time."""
        lead = frame.x.shape[:-1]
        elements = self._elements(batch)
        frames = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(lead) :]), frame)
        each = jax.vmap(lambda element, frame, value: function(self._flat_residual(element), frame, value))
        if values.ndim == len(lead) + 1:
            out = each(elements, frames, values.reshape(-1, values.shape[-1]))
            return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), out)
        draws = jnp.moveaxis(values.reshape(-1, *values.shape[len(lead) :]), 1, 0)
        out = _map_some(lambda value: each(elements, frames, value), draws, draws.shape[1])
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(*lead, -1, *leaf.shape[2:]), out)


def _map_some(function: Callable[..., Any], values: Any, size: int) -> Any:
    """Over the leading axis, as many at once as there is room for, when each is so many model runs (or numbers, if those are more)."""
    room = (LANES if jax.default_backend() == "cpu" else ACCELERATED) // max(size, 1)
    return map_blocks(jax.vmap(function), values, room) if room > 1 else jax.lax.map(function, values)


def _growing(mask: jax.Array) -> jax.Array:
    """The mask of each stage `(stages, *obs)`: what is observed in the first so many rows."""
    rows = jnp.arange(mask.shape[0]).reshape(-1, *(1,) * (mask.ndim - 1))
    return jnp.stack([jnp.where(rows < math.ceil(share * mask.shape[0]), mask, 0) for share in STAGES])


@dataclasses.dataclass(frozen=True)
class AnalysisEncoderConfig:
    """A variational analysis by Gauss–Newton and the `inner` encoder of the innovations around it; needs a least-squares simulator with a
    background."""

    kind: ClassVar[str] = "analysis"
    inner: InnerConfig = dataclasses.field(default_factory=MLPEncoderConfig)

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> AnalysisEncoder:
        """The encoder for elements of these shapes, with the residual of the simulator.

        Raises:
            ConfigError: there is no residual or no background.
        """
        got = None if simulator is None else simulator.kind
        require(isinstance(simulator, LeastSquares), "a least-squares simulator for the analysis encoder", got, "pick another encoder")
        assert isinstance(simulator, LeastSquares)
        return AnalysisEncoder(build_innovation(self.inner, spec, rngs, simulator), simulator.residual)
