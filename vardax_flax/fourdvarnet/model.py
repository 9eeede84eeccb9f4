"""4DVarNet: an assimilation whose descent is learned by differentiating through it.

    y, m → first guess x → [∇J(x) → modulator → x ← x − α u] × n → (a few steps of Gauss–Newton) → analysis

J(x) = Σ (m ⊙ (H(x) − y))² + λ Σ (x − φ(x))², in standardised units; and (r / b)² Σ (x − x_b)² for a background x_b, r and b the root mean
square of the errors of observations and backgrounds. What can be exchanged: the prior φ, the modulator, the observation operator H, and
the adjoint that differentiates the loop.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.adjoints import Adjoint, AdjointConfig, RecursiveCheckpointAdjoint
from vardax_flax.core.batch import Batch, check_batch
from vardax_flax.core.config import check_choices, require
from vardax_flax.core.interfaces import Estimator, Key, Physics, Simulator
from vardax_flax.core.remember import traced
from vardax_flax.fourdvarnet.climate import ClimateAnalysis, ClimateConfig
from vardax_flax.fourdvarnet.layout import Axes, Layout
from vardax_flax.fourdvarnet.modulators import ConvLSTMConfig, Modulator, ModulatorConfig
from vardax_flax.fourdvarnet.newton import NewtonConfig, NewtonSteps
from vardax_flax.fourdvarnet.patches import random_patch
from vardax_flax.fourdvarnet.priors import BilinearPriorConfig, DynamicalPrior, Prior, PriorConfig
from vardax_flax.nn import Standardizer, Statistic, initialise
from vardax_flax.ops.cores import over_cores
from vardax_flax.ops.interpolate import interpolate_in_time


class Solution(NamedTuple):
    """What the learned descent ends with.

    Args:
        state: `(*batch, *state)`, in physical units.
        carry: what the modulator remembers.
        cost: J there, `(*batch,)`, without unit.
    """

    state: Any
    carry: Any
    cost: Any


@dataclasses.dataclass(frozen=True)
class SolverLoss:
    """Weights of the training loss, all in standardised units.

    Args:
        reconstruction: of the mean square of x̂ − x.
        gradient: of the mean square of its differences along the grid, which keeps fronts sharp.
        prior: of the mean square of x̂ − φ(x̂) and of x − φ(x), which teaches a learned prior what a state is.
    """

    reconstruction: float = 1.0
    gradient: float = 0.0
    prior: float = 0.0

    def __post_init__(self) -> None:
        weights = dataclasses.astuple(self)
        require(min(weights) >= 0 and max(weights) > 0, "weights >= 0, not all of them 0", self, "pass such weights")


class FourDVarNet(Estimator):
    """A learned variational solver: x ← x − α u, (u, carry) = modulator(∇J(x), x, carry), n times.

    Reference: Fablet et al. 2021, *Learning variational data assimilation models and solvers*.

    Args:
        prior: φ of standardised states.
        modulator: what makes an update of the gradient.
        obs_op: H, one state `(*state)` → its noise-free observation, in physical units; None sees the state itself where the mask is 1.
        config: steps, step size, prior weight, first guess, losses.
        solver_adjoint: how the loop is differentiated; None is what `config` names.
        layout: shape of a state, and which axes are the grid.
        scale: what standardises states; `calibrate` sets it.
        newton: steps of Gauss–Newton on the weak-constraint cost after or before the learned ones, or None. `loss` leaves out those that
            come after and takes those that come before as given.
        climate: a Gaussian analysis to start the descent from, taken as given, or None.

    Raises:
        ConfigError: a first guess made of observations that are not of the state's shape.

    Example:
        >>> model = FourDVarNet1D(state_dim=40, n_time=20, rngs=nnx.Rngs(0))
        >>> analysis = model(Batch1D(input=y, mask=mask))                   # (B, 20, 40)
    """

    def __init__(
        self,
        prior: Prior | Callable[[jax.Array], jax.Array],
        modulator: Modulator,
        obs_op: Callable[[jax.Array], jax.Array] | None,
        config: FourDVarNetConfig,
        solver_adjoint: Adjoint | None = None,
        *,
        layout: Layout,
        scale: Standardizer | None = None,
        newton: NewtonSteps | None = None,
        climate: ClimateAnalysis | None = None,
    ) -> None:
        known = obs_op is None or (config.first_guess != "interpolate" and climate is None)
        expected = 'first_guess="zero" or "background" and no climate with an observation operator'
        require(known, expected, config.first_guess, "pick one, or leave the operator out")
        timed = len(layout.state) > 1 or config.first_guess != "interpolate"
        require(timed, "a time axis to interpolate along", layout.state, "pick another first_guess")
        self.prior = prior
        self.modulator = modulator
        self.obs_op = obs_op
        self.config = config
        self.adjoint = config.solver_adjoint if solver_adjoint is None else solver_adjoint
        self.layout = layout
        self.scale = Standardizer(layout.scale_shape) if scale is None else scale
        self.obs_scale = None if obs_op is None else Standardizer(())
        self.newton, self.climate = newton, climate
        self.calibrated = Statistic(jnp.zeros((), bool))
        self.background_weight = Statistic(jnp.ones(())) if config.first_guess == "background" else None

    def calibrate(self, batch: Batch) -> None:
        """Learn the standardisation, one scale for each variable, and what the steps that are not learned need to know; once."""
        if self.calibrated[...]:
            return  # a second training goes on with the scales that the weights were trained for
        if batch.target is None:
            raise ValueError("expected `target` in a batch to calibrate with, got None; do simulate Batch(..., target=x)")
        self.scale.calibrate(self.layout.rows(batch.target))
        if self.obs_scale is not None:
            self.obs_scale.calibrate(batch.input.reshape(-1), batch.mask.reshape(-1))
        for part in (self.newton, self.climate):
            if part is not None:
                part.calibrate(batch)
        if self.background_weight is not None:
            truth = self.scale(batch.target)
            error = jnp.where(batch.mask > 0, self.predict(truth) - self._standardise(batch.input), 0)
            noise = jnp.square(error).sum() / jnp.maximum(batch.mask.sum(), 1)
            self.background_weight[...] = noise / jnp.square(truth - self.scale(batch.background)).mean()
        self.calibrated[...] = jnp.ones((), bool)

    def __call__(self, batch: Batch) -> jax.Array:
        """The analysis `(*batch, *state)`, in physical units.

        Outside `jit` the batch is checked, and the solver compiled once for each shape. A window without observations is answered too.

        Raises:
            ValueError: a wrong shape, a mask other than 0 or 1, an observation that is not finite.
        """
        batch = batch._replace(target=None)
        if traced((batch, nnx.state(self))):
            return self.analysis(batch).state
        self._check_shape(batch)
        batch = check_batch(batch, allow_unobserved=True)
        graphdef, state = nnx.split(self)
        if self._batch_axes(batch):
            return _compiled(graphdef)(batch, state)
        return _compiled(graphdef)(jax.tree.map(lambda leaf: leaf[None], batch), state)[0]

    def analysis(self, batch: Batch) -> Solution:
        """The analysis under a trace, of a batch that has been checked, with what the learned descent leaves besides."""
        found = self.solve(batch)
        if self.newton is None or self.newton.config.place == "first":
            return found
        x = self.newton(found.state, batch)
        return found._replace(state=x, cost=self.cost(self.scale(x), self.prior, batch.input, batch.mask, batch.background))

    def _batch_axes(self, batch: Batch) -> int:
        return jnp.ndim(batch.input) - len(self._obs_shape())

    def _check_shape(self, batch: Batch) -> None:
        """Whether observations are of the state's shape, of any size along the grid where the prior allows it, or of that of H."""
        for name in ("noise_scale", "coords") if self.background_weight is not None else ("background", "noise_scale", "coords"):
            if getattr(batch, name) is not None:
                raise ValueError(f"expected no `{name}`, which this solver does not use, got one; do leave it out")
        shape, state = jnp.shape(batch.input), self._obs_shape()
        if self.background_weight is not None:
            got = jnp.shape(batch.background) if batch.background is not None else None
            fitting = shape if self.obs_op is None else (*shape[: len(shape) - len(state)], *self.layout.state)
            if got != fitting:
                raise ValueError(f"expected `background` of shape {fitting}, got {got}; do pass the state that the window starts from")
        sized = self.obs_op is not None or self.climate is not None or not getattr(self.prior, "free", True)
        free = () if sized else self.layout.grid
        own = shape[len(shape) - len(state) :] if len(shape) >= len(state) else ()
        fits = len(own) == len(state) and all(own[axis] == state[axis] for axis in range(len(state)) if axis not in free)
        if not fits:
            wanted = ", ".join("any" if axis in free else str(size) for axis, size in enumerate(state))
            do = "do reshape it, or build the solver for that state"
            raise ValueError(f"expected `input` of shape (*batch, {wanted}), got {shape}; {do}")

    def solve(self, batch: Batch, key: Key | None = None, adjoint: Adjoint | None = None) -> Solution:
        """The learned descent alone; `key` is for what is random in training, `adjoint` another than the solver's own."""
        graphdef, weights = nnx.split((self.prior, self.modulator))
        x = self.first_guess(batch)
        inner = lambda weights: nnx.merge(graphdef, weights)  # noqa: E731
        gradient = jax.grad(lambda *args: self.cost(*args).sum())
        known = batch.input, batch.mask, batch.background
        carry, context = self.modulator.start(gradient(x, self.prior, *known), key)

        def step(args: Any, state: Any) -> Any:
            weights, context, known = args
            x, carry = state
            prior, modulator = inner(weights)
            update, carry = modulator(gradient(x, prior, *known), x, carry, context)
            return x - self.config.alpha * update, carry

        args = weights, context, known
        x, carry = (self.adjoint if adjoint is None else adjoint).run(step, args, (x, carry), self.config.n_solver_steps)
        return Solution(self.scale.inverse(x), carry, self.cost(x, self.prior, *known))

    def cost(
        self, x: jax.Array, prior: Callable[[jax.Array], jax.Array], y: jax.Array, mask: jax.Array, background: jax.Array | None = None
    ) -> jax.Array:
        """J of standardised states `(*batch, *state)`, `(*batch,)`; y and the background are in physical units."""
        lead = self.layout.lead(x)
        total = lambda a: jnp.square(a).sum(axis=tuple(range(lead, a.ndim)))  # noqa: E731
        cost = total(jnp.where(mask > 0, self.predict(x) - self._standardise(y), 0)) + self.config.prior_weight * total(x - prior(x))
        if self.background_weight is None or background is None:
            return cost
        return cost + self.background_weight[...] * total(x - self.scale(background))

    def gradient(self, x: jax.Array, batch: Batch) -> jax.Array:
        """∇J of standardised states `(*batch, *state)`."""
        return jax.grad(lambda x: self.cost(x, self.prior, batch.input, batch.mask, batch.background).sum())(x)

    def predict(self, x: jax.Array) -> jax.Array:
        """H(x) of standardised states, standardised."""
        if self.obs_op is None or self.obs_scale is None:
            return x
        observe = self.obs_op
        for _ in range(self.layout.lead(x)):
            observe = jax.vmap(observe)
        return self.obs_scale(observe(self.scale.inverse(x)))

    def _standardise(self, y: jax.Array) -> jax.Array:
        return self.scale(y) if self.obs_scale is None else self.obs_scale(y)

    def first_guess(self, batch: Batch) -> jax.Array:
        """Where the descent starts, standardised: what `filled` makes of the observations, and Newton's method if that comes first."""
        x = self.filled(batch)
        if self.newton is None or self.newton.config.place == "last":
            return x
        return jax.lax.stop_gradient(self.scale(self.newton(self.scale.inverse(x), batch)))

    def filled(self, batch: Batch) -> jax.Array:
        """A background, what the climate makes of the observations, or these where there are any and what `config` says elsewhere;
        standardised."""
        if self.config.first_guess == "background":
            return self.scale(batch.background)
        if self.climate is not None:
            return jax.lax.stop_gradient(self.scale(self.climate(batch)))
        if self.config.first_guess == "zero":
            lead = batch.input.shape[: self._batch_axes(batch)]
            seen = jnp.where(batch.mask > 0, self._standardise(batch.input), 0)
            return seen if self.obs_op is None else jnp.zeros((*lead, *self.layout.state), seen.dtype)
        rows = lambda a: a.reshape(-1, *a.shape[self.layout.lead(a) :])  # noqa: E731
        filled = jax.vmap(interpolate_in_time)(rows(self._standardise(batch.input)), rows(batch.mask))
        return filled.reshape(batch.input.shape)

    def _obs_shape(self) -> tuple[int, ...]:
        """Of the observation of one state of the size the solver was built for."""
        if self.obs_op is None:
            return self.layout.state
        return tuple(jax.eval_shape(self.obs_op, jax.ShapeDtypeStruct(self.layout.state, self.scale.mean[...].dtype)).shape)

    def loss(self, batch: Batch, key: Key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Weighted sum of `SolverLoss` over the batch, of the learned descent; and its terms. Patches and dropout are random by `key`.

        Raises:
            ValueError: the batch has no target.
        """
        if batch.target is None:
            raise ValueError("expected `target` in a training batch, got None; do simulate Batch(..., target=x)")
        key_patch, key_dropout = jax.random.split(key)
        if self.config.patch is not None:
            batch = random_patch(batch, key_patch, self.config.patch)
        x, truth = self.scale(self.solve(batch, key_dropout).state), self.scale(batch.target)
        terms = {"reconstruction": jnp.square(x - truth).mean()}
        if self.config.loss.gradient > 0:
            terms["gradient"] = difference_loss(self.layout.to_grid(x), self.layout.to_grid(truth), len(self.layout.grid))
        if self.config.loss.prior > 0:
            terms["prior"] = jnp.square(x - self.prior(x)).mean() + jnp.square(truth - self.prior(truth)).mean()
        total = sum(getattr(self.config.loss, name) * value for name, value in terms.items())
        return jnp.asarray(total), terms


@functools.lru_cache(maxsize=32)
def _compiled(graphdef: Any) -> Any:
    return over_cores(lambda batch, state: nnx.merge(graphdef, state).analysis(batch).state)


def difference_loss(x: jax.Array, truth: jax.Array, grid_rank: int) -> jax.Array:
    """Mean square of the differences of x − truth between neighbours along each axis of a grid with channels last."""
    error = x - truth
    axes = range(error.ndim - grid_rank - 1, error.ndim - 1)
    return sum((jnp.square(jnp.diff(error, axis=axis)).mean() for axis in axes), jnp.zeros((), x.dtype))


@dataclasses.dataclass(frozen=True)
class FourDVarNetConfig:
    """A learned solver.

    Args:
        prior, modulator: its networks.
        axes: what the networks convolve along: "time", "space" or "space-time"; the rest are channels.
        periodic: whether space is.
        n_solver_steps: of the descent.
        alpha: α, length of a step.
        prior_weight: λ.
        solver_adjoint: how the descent is differentiated.
        first_guess: "interpolate" observations in time, "zero" (the mean) where there are none, or the "background".
        loss: weights of the training loss.
        patch: train, and evaluate while training, on random windows of this size along the last axes of a state; None takes whole states.
        newton: steps of Gauss–Newton after the learned ones or before them, for a simulator with a `step`; None is none.
        climate: a Gaussian analysis of periodic fields by a learned covariance instead of the first guess; None is none.
    """

    kind: ClassVar[str] = "fourdvarnet"

    prior: PriorConfig = dataclasses.field(default_factory=BilinearPriorConfig)
    modulator: ModulatorConfig = dataclasses.field(default_factory=ConvLSTMConfig)
    axes: Axes = "space"
    periodic: bool = False
    n_solver_steps: int = 15
    alpha: float = 0.2
    prior_weight: float = 1.0
    solver_adjoint: AdjointConfig = dataclasses.field(default_factory=RecursiveCheckpointAdjoint)
    first_guess: Literal["interpolate", "zero", "background"] = "interpolate"
    loss: SolverLoss = dataclasses.field(default_factory=SolverLoss)
    patch: tuple[int, ...] | None = None
    newton: NewtonConfig | None = None
    climate: ClimateConfig | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.n_solver_steps > 0, "n_solver_steps > 0", self.n_solver_steps, "pass a positive number")
        require(0 < self.alpha < math.inf, "alpha > 0", self.alpha, "pass a positive step")
        require(0 <= self.prior_weight < math.inf, "prior_weight >= 0", self.prior_weight, "pass 0 or more")
        alone = sum((self.first_guess == "background", self.climate is not None, self.newton is not None))
        require(alone < 2, "one of a background, a climate and Newton steps", self, "leave the others out: each brings a prior of its own")
        require(self.patch is None or self.climate is None, "whole states with a climate", self.patch, "leave one of them out")
        require(self.patch is None or min(self.patch) > 1, "patches of at least 2 points a side", self.patch, "pass larger ones")

    @property
    def head_type(self) -> str:
        """What stands where a posterior has its head's kind."""
        return "learned solver"

    def build(self, simulator: Simulator, rngs: nnx.Rngs) -> FourDVarNet:
        """The untrained solver for the shapes of `simulator.spec`, with the simulator's H where observations are not of the state's shape.

        Raises:
            ConfigError: observations of another shape from a simulator without `predict`; a background that is not used, or missing.
        """
        spec = simulator.spec
        same = spec.target is not None and (spec.input.shape == spec.target.shape or isinstance(simulator, Physics))
        require(same, "observations on the grid of the state, or a `predict`", spec, "simulate such, or make FourDVarNet with an obs_op")
        used = spec.noise_scale is None and spec.coords is None
        require(used, "elements without noise_scale and coords", spec, "simulate without them: the solver does not use them")
        wanted = spec.target.shape if self.first_guess == "background" else None
        got = None if spec.background is None else spec.background.shape
        require(got == wanted, f"a background of shape {wanted}", got, 'pick first_guess="background" where there is one, else another')
        return initialise(assemble, rngs, tuple(spec.target.shape), self, simulator)


def _check_patch(config: FourDVarNetConfig, layout: Layout, prior: Prior) -> None:
    """Whether a part of a state is one of the kind that the solver is made for."""
    assert config.patch is not None
    rank = len(layout.state)
    require(len(config.patch) <= rank, f"a patch of at most {rank} axes", config.patch, "pass one size for each of the last axes")
    require(prior.free, "a prior for states of any size, to train on patches", config.prior.kind, "pick another, or leave out the patch")
    whole = set(layout.others) | {axis for axis, pad in zip(layout.grid, layout.padding, strict=True) if pad == "CIRCULAR"}
    if config.newton is not None or isinstance(prior, DynamicalPrior):
        whole.add(rank - 1)  # the model is one of all sites
    sizes = dict(zip(range(rank - len(config.patch), rank), config.patch, strict=True))
    cut = [axis for axis, size in sizes.items() if axis in whole and size < layout.state[axis]]
    expected = f"a patch that leaves channels, periodic axes and the sites of a model whole in {layout.state}"
    require(not cut, expected, config.patch, "enlarge it")


def assemble(rngs: nnx.Rngs, state: tuple[int, ...], config: FourDVarNetConfig, simulator: Simulator | None = None) -> FourDVarNet:
    """The solver for states of this shape."""
    layout = Layout(state, config.axes, config.periodic)
    scale = Standardizer(layout.scale_shape)
    prior = config.prior.build(layout, scale, simulator, rngs)
    newton = None if config.newton is None else config.newton.build(state, simulator)
    obs_op = simulator.predict if isinstance(simulator, Physics) else None
    if config.patch is not None:
        require(obs_op is None, "observations on the grid of the state, to cut patches", "an observation operator", "leave the patch out")
        _check_patch(config, layout, prior)
    climate = None if config.climate is None else config.climate.build(layout)
    parts: Any = {"layout": layout, "scale": scale, "newton": newton, "climate": climate}
    return FourDVarNet(prior, config.modulator.build(layout, rngs), obs_op, config, **parts)
