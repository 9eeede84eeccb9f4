"""The usual assemblies by their usual names."""

from __future__ import annotations

from typing import Any

from flax import nnx

from vardax_flax.adjoints import Adjoint, ImplicitAdjoint, OneStepAdjoint, RecursiveCheckpointAdjoint
from vardax_flax.core.batch import Batch
from vardax_flax.fourdvarnet.layout import Axes, Layout
from vardax_flax.fourdvarnet.model import FourDVarNet, FourDVarNetConfig, Solution, assemble
from vardax_flax.fourdvarnet.modulators import ConvLSTMConfig, ConvLSTMModulator
from vardax_flax.fourdvarnet.priors import BilinearPriorConfig
from vardax_flax.nn import initialise


def _usual(
    state: tuple[int, ...], latent_dim: int, hidden_dim: int, solver_adjoint: Adjoint | None, rngs: nnx.Rngs, rest: Any
) -> FourDVarNet:
    adjoint: Any = RecursiveCheckpointAdjoint() if solver_adjoint is None else solver_adjoint
    parts: dict[str, Any] = {"prior": BilinearPriorConfig(latent_dim), "modulator": ConvLSTMConfig(hidden_dim), "solver_adjoint": adjoint}
    return initialise(assemble, rngs, state, FourDVarNetConfig(**parts, **rest))


def FourDVarNet1D(
    state_dim: int, n_time: int, latent_dim: int = 32, hidden_dim: int = 64, n_solver_steps: int = 15, alpha: float = 0.2,
    prior_weight: float = 1.0, solver_adjoint: Adjoint | None = None, *, axes: Axes = "time", periodic: bool = False, rngs: nnx.Rngs,
) -> FourDVarNet:  # fmt: skip
    """The solver for series `(B, n_time, state_dim)`: a bilinear prior, and a ConvLSTM along time (or what `axes` says).

    Args:
        state_dim, n_time: of a state; the axis that is convolved along may be of any other size later.
        latent_dim: of the prior.
        hidden_dim: of the modulator.
        n_solver_steps, alpha, prior_weight, solver_adjoint: of the descent.
        axes, periodic: the grid.

    Example:
        >>> FourDVarNet1D(3, 200, rngs=nnx.Rngs(0))(Batch1D(input=y, mask=mask)).shape
        (8, 200, 3)
    """
    rest = {"n_solver_steps": n_solver_steps, "alpha": alpha, "prior_weight": prior_weight, "axes": axes, "periodic": periodic}
    return _usual((n_time, state_dim), latent_dim, hidden_dim, solver_adjoint, rngs, rest)


def FourDVarNet2D(
    n_time: int, height: int, width: int, latent_dim: int = 64, hidden_dim: int = 64, n_solver_steps: int = 15, alpha: float = 0.2,
    prior_weight: float = 1.0, solver_adjoint: Adjoint | None = None, *, variables: int | None = None, periodic: bool = False,
    rngs: nnx.Rngs,
) -> FourDVarNet:  # fmt: skip
    """The solver for series of fields `(B, n_time, [variables,] height, width)`: times and variables are channels.

    Args:
        n_time, height, width: of a state; height and width may be others later.
        variables: fields at each time; None for one, without an axis of its own.
        latent_dim: of the prior.
        hidden_dim: of the modulator.
        n_solver_steps, alpha, prior_weight, solver_adjoint: of the descent.
        periodic: whether height and width are.

    Example:
        >>> FourDVarNet2D(15, 64, 64, rngs=nnx.Rngs(0))(Batch2D(input=y, mask=mask)).shape
        (4, 15, 64, 64)
    """
    rest = {"n_solver_steps": n_solver_steps, "alpha": alpha, "prior_weight": prior_weight, "axes": "space", "periodic": periodic}
    state = (n_time, height, width) if variables is None else (n_time, variables, height, width)
    return _usual(state, latent_dim, hidden_dim, solver_adjoint, rngs, rest)


def ConvLSTMGradMod1D(
    state_channels: int, hidden_dim: int, kernel_size: int = 3, *, periodic: bool = False, rngs: nnx.Rngs, **options: Any
) -> ConvLSTMModulator:
    """The ConvLSTM modulator of states `(state_channels, n)`, along their last axis; `options` as of `ConvLSTMConfig`."""
    config = ConvLSTMConfig(hidden_dim, kernel_size, **options)
    return ConvLSTMModulator(Layout((state_channels, 1), "space", periodic), config, rngs=rngs)


def ConvLSTMGradMod2D(
    state_channels: int, hidden_dim: int, kernel_size: int = 3, *, periodic: bool = False, rngs: nnx.Rngs, **options: Any
) -> ConvLSTMModulator:
    """The ConvLSTM modulator of states `(state_channels, height, width)`; `options` as of `ConvLSTMConfig`."""
    config = ConvLSTMConfig(hidden_dim, kernel_size, **options)
    return ConvLSTMModulator(Layout((state_channels, 1, 1), "space", periodic), config, rngs=rngs)


def one_step_solve_4dvarnet_1d(model: FourDVarNet, batch: Batch) -> Solution:
    """The learned descent of series or fields, differentiated through its last step only."""
    return model.solve(batch, adjoint=OneStepAdjoint())


def solve_4dvarnet_1d_fixedpoint(model: FourDVarNet, batch: Batch, **options: Any) -> Solution:
    """The learned descent of series or fields, differentiated as a fixed point; `options` as of `ImplicitAdjoint`."""
    return model.solve(batch, adjoint=ImplicitAdjoint(**options))


# a solver knows the axes of its states, so that one function serves both
one_step_solve_4dvarnet_2d = one_step_solve_4dvarnet_1d
solve_4dvarnet_2d_fixedpoint = solve_4dvarnet_1d_fixedpoint
