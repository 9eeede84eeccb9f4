"""The analysis of a learned solver as the place that a posterior is built around: a solver with error bars."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Encoded, LocatingEncoder, Simulator
from vardax_flax.encoders import AnalysisEncoder, AnalysisEncoderConfig
from vardax_flax.encoders.inputs import per_draw, without_hidden
from vardax_flax.fourdvarnet.model import FourDVarNet, FourDVarNetConfig, SolverLoss
from vardax_flax.nn import Standardizer, Statistic
from vardax_flax.ops.precision import full_precision

EXACT, PROBES = 64, 8  # components up to which a curvature is exact, and vectors of signs that estimate it above


class SolverEncoder(LocatingEncoder):
    """context = (x_a, ∇J(x_a), diag Hᵀ m H, h) as fields, z = E (x − x_a), with the analysis x_a and the last memory h of a solver.

    The gradient says where the analysis does not fit, the curvature of the observations where it is held, the memory what the solver knows
    besides; from these the head learns the rest of the mean and the spread. Context and z are fields `(*grid, channels)`, flat, on the grid
    of the solver, for heads with a `net`. E takes the channels of each point, such as its days, to the principal components of x − x_a as
    it is before training, each of unit variance: errors of one day and the next are alike. Solver and head are trained together: by the
    loss of the head, and the solver by weight · ½ ‖(x − x_a) / s‖² too, without which the head would do its work, s the root mean square
    of x − x_a before training.

    Args:
        solver: whose state is the target.
        weight: of the solver's own loss.

    Example:
        >>> encoder = SolverEncoderConfig(FourDVarNetConfig()).build(simulator.spec, nnx.Rngs(0), simulator)
        >>> context, analysis = encoder.locate(batch)
    """

    affine = True

    def __init__(self, solver: FourDVarNet, weight: float) -> None:
        self.solver, self.weight = solver, weight
        layout = solver.layout
        self.grid = grid = tuple(layout.state[axis] for axis in layout.grid)
        self.features = math.prod(grid) * (3 * layout.channels + solver.modulator.memory_channels)
        self.scale = Statistic(jnp.ones(layout.scale_shape))
        self.mix, self.unmix = (Statistic(jnp.eye(layout.channels)) for _ in range(2))
        self.gradient, self.curvature = Standardizer(()), Standardizer(())

    def calibrate(self, batch: Batch) -> None:
        self.solver.calibrate(batch)
        graphdef, state = nnx.split(self.solver)

        def statistics(batch: Batch) -> Any:
            solver = nnx.merge(graphdef, state)
            x = solver.scale(solver.analysis(batch).state)
            return x, solver.gradient(x, batch), curvature(solver, x, batch)

        x, gradient, bend = jax.jit(statistics)(without_hidden(batch))
        self.gradient.calibrate(gradient.ravel())
        self.curvature.calibrate(bend.ravel())
        error = batch.target - self.solver.scale.inverse(x)
        self.scale[...] = jnp.sqrt(jnp.square(self.solver.layout.rows(error)).mean(axis=0))
        rows = np.asarray(self.solver.layout.to_grid(error), np.float64).reshape(-1, self.solver.layout.channels)
        variance, component = np.linalg.eigh(rows.T @ rows / len(rows))
        std = np.sqrt(np.maximum(variance, 1e-6 * variance.max()))
        self.mix[...], self.unmix[...] = (jnp.asarray(a, error.dtype) for a in (component / std, (component * std).T))

    def locate(self, batch: Batch) -> Encoded:
        batch = without_hidden(batch)
        solver, layout = self.solver, self.solver.layout
        found = solver.analysis(batch)
        x = solver.scale(found.state)
        fields = [x, self.gradient(solver.gradient(x, batch)), self.curvature(curvature(solver, x, batch))]
        parts = [layout.to_grid(field) for field in fields]
        if solver.modulator.memory_channels:
            parts.append(solver.modulator.memory(found.carry, layout.grid_sizes(x)))
        context = jnp.concatenate(parts, axis=-1)
        return Encoded(context.reshape(*context.shape[: layout.lead(x)], -1), found.state)

    @full_precision
    def to_z(self, x: jax.Array, batch: Batch, frame: Any) -> tuple[jax.Array, jax.Array]:
        layout = self.solver.layout
        z = layout.to_grid(x - per_draw(frame, x.ndim, len(layout.state))) @ self.mix[...]
        # the rows of `unmix` are orthogonal
        log_det = -0.5 * math.prod(self.grid or ()) * jnp.log(jnp.square(self.unmix[...]).sum(axis=-1)).sum()
        return z.reshape(*x.shape[: layout.lead(x)], -1), log_det

    @full_precision
    def to_x(self, z: jax.Array, batch: Batch, frame: Any) -> jax.Array:
        layout = self.solver.layout
        grid = z.reshape(*z.shape[:-1], *(self.grid or ()), layout.channels)
        offset = layout.from_grid(grid @ self.unmix[...])
        return per_draw(frame, offset.ndim, len(layout.state)) + offset

    def penalty(self, x: jax.Array, frame: Any) -> jax.Array | None:
        return self.weight * _half_square((x - frame) / self.scale[...], self.solver.layout.lead(x))


class SolvedAnalysisEncoder(LocatingEncoder):
    """An `AnalysisEncoder` that starts from the analysis of a solver: a few steps of Gauss–Newton on the whole window.

    Where that ends higher than Gauss–Newton on a window that grows does, the latter counts. The solver learns the way to the mode, physics
    the last bit of it and the shape of the posterior there, the head how this departs from what physics says. Solver and head are trained
    together, the solver by weight · ½ ‖(x − x_a) / s‖² alone, s the root mean square of the error of backgrounds.

    Args:
        solver: whose state is the target.
        around: what is done at its analysis.
        weight: of the solver's own loss.

    Example:
        >>> encoder = SolvedAnalysisEncoderConfig(FourDVarNetConfig(first_guess="background")).build(spec, nnx.Rngs(0), simulator)
        >>> context, frame = encoder.locate(batch)
    """

    def __init__(self, solver: FourDVarNet, around: AnalysisEncoder, weight: float) -> None:
        self.solver, self.around, self.weight = solver, around, weight
        self.features = around.features
        self.scale = Statistic(jnp.ones(()))

    def calibrate(self, batch: Batch) -> None:
        self.solver.calibrate(batch)
        self.around.calibrate(batch)
        self.scale[...] = jnp.sqrt(jnp.square(batch.target - batch.background).mean())

    def locate(self, batch: Batch) -> Encoded:
        start = self.solver.analysis(without_hidden(batch)).state
        found = self.around.locate(batch, jax.lax.stop_gradient(start))
        return Encoded(found.context, (found.frame, start))

    def to_z(self, x: jax.Array, batch: Batch, frame: Any) -> tuple[jax.Array, jax.Array]:
        return self.around.to_z(x, batch, frame[0])

    def to_x(self, z: jax.Array, batch: Batch, frame: Any) -> jax.Array:
        return self.around.to_x(z, batch, frame[0])

    def penalty(self, x: jax.Array, frame: Any) -> jax.Array | None:
        return self.weight * _half_square((x - frame[1]) / self.scale[...], self.solver.layout.lead(x))


def _half_square(x: jax.Array, lead: int) -> jax.Array:
    return 0.5 * jnp.square(x).sum(axis=tuple(range(lead, x.ndim)))


def curvature(solver: FourDVarNet, x: jax.Array, batch: Batch) -> jax.Array:
    """diag Hᵀ m H of the observations, of the shape of the standardised state x: the mask where H is the identity.

    Up to 64 components exactly, above by random signs that are the same for all windows (Hutchinson 1989).
    """
    if solver.obs_op is None:
        return batch.mask.astype(x.dtype)
    shape, size = solver.layout.state, math.prod(solver.layout.state)
    exact = size <= EXACT
    probes = jnp.eye(size, dtype=x.dtype) if exact else jax.random.rademacher(jax.random.key(0), (PROBES, size), x.dtype)
    _, push = jax.linearize(solver.predict, x)
    pull = jax.linear_transpose(push, x)

    def one(probe: jax.Array) -> jax.Array:
        along = jnp.broadcast_to(probe.reshape(shape), x.shape)
        return along * pull(batch.mask * push(along))[0]

    total = jax.lax.scan(lambda total, probe: (total + one(probe), None), jnp.zeros_like(x), probes)[0]
    return total if exact else total / PROBES


def _check_solver(solver: FourDVarNetConfig) -> None:
    """Whether nothing in it is for another training than that with a head."""
    plain = solver.loss == SolverLoss() and solver.patch is None and getattr(solver.modulator, "dropout", 0) == 0
    require(plain, "a solver without loss, patch and dropout of its own", solver, "leave them out, or train it first and start from it")
    last = solver.newton is not None and solver.newton.place == "last"
    require(not last, 'a solver without Newton steps, or with place="first"', solver.newton, "leave them out")


@dataclasses.dataclass(frozen=True)
class SolverEncoderConfig:
    """A learned `solver`, trained together with the head: the square of its error counts by `weight`."""

    kind: ClassVar[str] = "solver"
    solver: FourDVarNetConfig = dataclasses.field(default_factory=FourDVarNetConfig)
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.weight < math.inf, "weight >= 0", self.weight, "pass 0 or more")
        _check_solver(self.solver)

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> SolverEncoder:
        """The encoder for elements of a simulator whose target is the state of the solver.

        Raises:
            ConfigError: there is no simulator, or not one that the solver is for.
        """
        require(simulator is not None, "a simulator for the solver", None, "pass one")
        assert simulator is not None
        return SolverEncoder(self.solver.build(simulator, rngs), self.weight)


@dataclasses.dataclass(frozen=True)
class SolvedAnalysisEncoderConfig:
    """A learned `solver`, and `around` its analysis that of a least-squares simulator; the square of its error counts by `weight`."""

    kind: ClassVar[str] = "solved_analysis"
    solver: FourDVarNetConfig = dataclasses.field(default_factory=lambda: FourDVarNetConfig(first_guess="background"))
    around: AnalysisEncoderConfig = dataclasses.field(default_factory=AnalysisEncoderConfig)
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.weight < math.inf, "weight > 0", self.weight, "pass a positive one: nothing else trains the solver")
        _check_solver(self.solver)
        guess = self.solver.first_guess
        require(guess == "background", 'a solver with first_guess="background"', repr(guess), "pick it")

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> SolvedAnalysisEncoder:
        """The encoder for elements of a least-squares simulator with a background.

        Raises:
            ConfigError: there is no such simulator, or the solver is not for it.
        """
        around = self.around.build(spec, rngs, simulator)
        assert simulator is not None
        return SolvedAnalysisEncoder(self.solver.build(simulator, rngs), around, self.weight)
