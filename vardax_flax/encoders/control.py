"""A few steps of a variational analysis in control space: fields are located before any network sees them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import ControlVariable, Encoded, LocatingEncoder, Simulator
from vardax_flax.encoders.inputs import per_draw, without_hidden
from vardax_flax.nn import Standardizer, Statistic
from vardax_flax.ops.linear import conjugate_gradient
from vardax_flax.ops.precision import full_precision

# the share of the mean curvature in the preconditioner, and its power: of 0 to 1 each the best for 16 to 48 steps on fields under tracks
SHARE, POWER = 0.01, 0.5
PROBES = 256  # windows whose curvature is averaged


class ControlEncoder(LocatingEncoder):
    """context = (x_a, d, m) as fields, z = (x − x_a) / s, with the analysis x_a = L(w_a) of a simulator with a control variable.

    w_a is what a fixed number of steps of conjugate gradients make of min ½‖w‖² + ½‖J w + misfit(0)‖², J the derivative of the misfit at
    w = 0: the inner loop of incremental variational assimilation, preconditioned by the prior (Courtier et al. 1994; Lorenc 1988), and here
    also by the curvature that an average window has along each component of w. Many observations close together converge slowly; what is
    left shows in the misfits d of the analysis, from which a network corrects it. Where the simulator is linear and Gaussian, x_a tends to
    the posterior mean with the number of steps.

    The context is the field (x_a, and every d and m whose last axes are those of the state) with channels last, `(*state, channels)`, flat;
    then, as a vector, the observations that do not lie on the grid of the state. s is the root mean square of x − x_a.

    Args:
        simulator: with a control variable.
        spec: shapes of one element.
        steps: of conjugate gradients.

    Example:
        >>> encoder = ControlEncoderConfig(steps=16).build(simulator.spec, nnx.Rngs(0), simulator)
        >>> context, analysis = encoder.locate(batch)
    """

    affine = True

    def __init__(self, simulator: ControlVariable, spec: Batch, steps: int) -> None:
        self.simulator, self.steps = simulator, steps
        self.obs_shape = tuple(spec.input.shape)
        w = jax.ShapeDtypeStruct(simulator.control_shape, spec.input.dtype)
        self.state_shape = tuple(jax.eval_shape(simulator.state, w, spec).shape)
        self.on_grid = self.obs_shape[len(self.obs_shape) - len(self.state_shape) :] == self.state_shape
        self.features = math.prod(self.state_shape) + 2 * math.prod(self.obs_shape)
        self.preconditioner = Statistic(jnp.ones(simulator.control_shape))
        self.scale = Statistic(jnp.ones(()))
        self.state, self.misfit = Standardizer(()), Standardizer(())

    def calibrate(self, batch: Batch) -> None:
        self.preconditioner[...] = jax.jit(self._preconditioner)(jax.tree.map(lambda leaf: leaf[:PROBES], without_hidden(batch)))
        analysis, misfit = jax.jit(self._analyse)(batch)
        self.state.calibrate(analysis.ravel())
        self.misfit.calibrate(misfit.ravel(), batch.mask.ravel())
        if batch.target is not None:
            self.scale[...] = jnp.sqrt(jnp.square(batch.target - analysis).mean())

    @full_precision
    def _preconditioner(self, batch: Batch) -> jax.Array:
        """(1 + E diag JᵀJ / 100)^−½, each window's diagonal estimated by one random vector of signs (Hutchinson 1989)."""

        def one(element: Batch, key: jax.Array) -> jax.Array:
            push, pull = self._linear(element)[1:]
            signs = jax.random.rademacher(key, self.simulator.control_shape, batch.input.dtype)
            return signs * pull(push(signs))

        keys = jax.random.split(jax.random.key(0), batch.input.shape[0])
        return (1 + SHARE * jnp.maximum(jax.vmap(one)(batch, keys).mean(axis=0), 0)) ** -POWER

    def _linear(self, element: Batch) -> Any:
        """The misfit at w = 0, its derivative J and its transpose."""
        start = jnp.zeros(self.simulator.control_shape, element.input.dtype)
        misfit, push = jax.linearize(lambda w: self.simulator.misfit(w, element), start)
        transposed = jax.linear_transpose(push, start)
        return misfit, push, lambda d: transposed(d)[0]

    @full_precision
    def _analyse(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """x_a `(*batch, *state)` and its misfits `(*batch, *obs)`."""

        def one(element: Batch) -> tuple[jax.Array, jax.Array]:
            misfit, push, pull = self._linear(element)
            w = conjugate_gradient(lambda w: w + pull(push(w)), -pull(misfit), self.steps, preconditioner=self.preconditioner[...])
            return self.simulator.state(w, element), self.simulator.misfit(w, element)

        lead = batch.input.ndim - len(self.obs_shape)
        out = jax.vmap(one)(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[lead:]), without_hidden(batch)))
        return jax.tree.map(lambda leaf: leaf.reshape(*batch.input.shape[:lead], *leaf.shape[1:]), out)

    def locate(self, batch: Batch) -> Encoded:
        analysis, misfit = self._analyse(batch)
        lead, state = analysis.shape[: analysis.ndim - len(self.state_shape)], self.state(analysis)
        seen = [jnp.where(batch.mask != 0, self.misfit(misfit), 0), batch.mask.astype(state.dtype)]
        if not self.on_grid:
            return Encoded(jnp.concatenate([part.reshape(*lead, -1) for part in (state, *seen)], axis=-1), analysis)
        fields = [part.reshape(*lead, -1, *self.state_shape) for part in (state, *seen)]
        context = jnp.moveaxis(jnp.concatenate(fields, axis=len(lead)), len(lead), -1)
        return Encoded(context.reshape(*lead, -1), analysis)

    def to_z(self, x: jax.Array, batch: Batch, frame: Any) -> tuple[jax.Array, jax.Array]:
        z = (x - per_draw(frame, x.ndim, len(self.state_shape))) / self.scale[...]
        return z.reshape(*x.shape[: x.ndim - len(self.state_shape)], -1), -math.prod(self.state_shape) * jnp.log(self.scale[...])

    def to_x(self, z: jax.Array, batch: Batch, frame: Any) -> jax.Array:
        x = z.reshape(*z.shape[:-1], *self.state_shape)
        return per_draw(frame, x.ndim, len(self.state_shape)) + self.scale[...] * x


@dataclasses.dataclass(frozen=True)
class ControlEncoderConfig:
    """So many `steps` of conjugate gradients in the control variable of the simulator; what they leave goes to the head as fields."""

    kind: ClassVar[str] = "control"
    steps: int = 16

    def __post_init__(self) -> None:
        require(self.steps > 0, "steps > 0", self.steps, "pass a positive number")

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> ControlEncoder:
        """The encoder for elements of these shapes.

        Raises:
            ConfigError: the simulator has no control variable.
        """
        got = None if simulator is None else simulator.kind
        require(isinstance(simulator, ControlVariable), "a simulator with a control variable", got, "pick another encoder")
        assert isinstance(simulator, ControlVariable)
        return ControlEncoder(simulator, spec, self.steps)
