"""The variational methods: each is a way to go from the control variable to what was observed."""

from __future__ import annotations

import abc
import copy
import math
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vardax_flax.assimilation.covariance import as_covariance
from vardax_flax.assimilation.observation import Identity, ObsOp, require_linear
from vardax_flax.assimilation.posterior import CovarianceStrategy, Gaussian, GaussNewtonHessian, Provenance
from vardax_flax.assimilation.problem import Problem, misfit
from vardax_flax.assimilation.solve import Minimiser, QuasiNewton, Solve, Status, describe
from vardax_flax.core.batch import Batch, check_batch
from vardax_flax.core.config import ConfigError
from vardax_flax.core.remember import traced
from vardax_flax.ops.cores import over_cores
from vardax_flax.ops.precision import full_precision


class NotConverged(UserWarning):
    """An analysis that is not the minimum of its cost."""


class Analysis(NamedTuple):
    """An analysis and how it was found.

    Args:
        state: `(*batch, *state)`; of a method with model error the whole window `(*batch, times, *state)`.
        solve: control, cost, distance, iterations, status, each with the axes of the batch.
    """

    state: jax.Array
    solve: Solve


class VariationalMethod(abc.ABC):
    """Interface of the methods: an element's `Problem`, and everything that follows from it.

    Args:
        state_shape: of one state.
        background_cov: B: a variance, variances, a matrix, a `Covariance` or an operator of lineax, of the flat state.
        obs_cov: R of the flat observation at one time, likewise; None takes the squares of `batch.noise_scale`.
        obs_op: H, from one state to its observation.
        minimiser: `GaussNewton` or `QuasiNewton`; L-BFGS unless told.
        background_shape: of the background, where it is not a state.
    """

    in_window = True  # whether the input has an axis of times

    def __init__(
        self, state_shape: tuple[int, ...], *, background_cov: Any, obs_cov: Any = None, obs_op: ObsOp | None = None,
        minimiser: Minimiser | None = None, background_shape: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        self.state_shape = tuple(state_shape)
        self.background_shape = self.state_shape if background_shape is None else tuple(background_shape)
        self.size = math.prod(self.state_shape)
        self.background_cov = as_covariance(background_cov, math.prod(self.background_shape), "background_cov")
        self._observe(Identity() if obs_op is None else obs_op, obs_cov)
        self.minimiser = QuasiNewton() if minimiser is None else minimiser
        self._programs: dict[Any, Any] = {}

    def _observe(self, obs_op: ObsOp, obs_cov: Any) -> None:
        self.obs_op = obs_op
        self.obs_shape = jax.eval_shape(obs_op, self._struct()).shape
        self.obs_cov = None if obs_cov is None else as_covariance(obs_cov, math.prod(self.obs_shape), "obs_cov")

    def _struct(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.state_shape, jnp.result_type(float))

    @abc.abstractmethod
    def problem(self, element: Batch) -> Problem:
        """The problem of one element (no batch axis, input `(times, *obs)`)."""

    def __call__(self, batch: Batch) -> jax.Array:
        """The analysis `(*batch, *state)`.

        Warns:
            NotConverged: some element's minimum was not reached; `solve` says which.
        """
        analysis = self.solve(batch)
        self._warn(analysis.solve)
        return analysis.state

    def solve(self, batch: Batch) -> Analysis:
        """The analysis of every element, and how each ended.

        Raises:
            ValueError: shapes that do not fit, a value that is not finite where observed, an element with nothing observed.
            ConfigError: no background.
        """
        return self._map(self._program("solve", self._solve_all), batch)

    def posterior(
        self, batch: Batch, covariance: CovarianceStrategy | None = None, *, window: bool = False, key: jax.Array | None = None
    ) -> Gaussian:
        """The Gaussian around the analysis.

        Args:
            batch: observations and background.
            covariance: `GaussNewtonHessian()` unless told.
            window: of all states of the window `(*batch, times, *state)`, instead of what is inferred alone.
            key: of Lanczos or of an ensemble.

        Warns:
            NotConverged: some element's minimum was not reached; `provenance.status` says which.
        """
        covariance = GaussNewtonHessian() if covariance is None else covariance
        key = jax.random.key(0) if key is None else key
        program = self._program(("posterior", covariance, window), lambda: self._posterior_all(covariance, window))
        mean, parts, solve, log_evidence = self._map(program, batch, key)
        self._warn(solve)
        versions = {name: version(name) for name in ("vardax-flax", "jax")}
        provenance = Provenance(
            type(self).__name__, type(covariance).__name__, solve.cost, solve.distance, solve.iterations, solve.status, versions
        )
        rank = mean.ndim - solve.cost.ndim
        return Gaussian(
            mean, parts, self._push_window if window else self._push_state, size=solve.control.shape[-1], state_rank=rank,
            log_evidence=log_evidence, provenance=provenance,
        )  # fmt: skip

    def as_analysis_step(self) -> Callable[..., jax.Array]:
        """The method as a step of a cycle: `step(forecast, obs, *, obs_op=None, obs_err_cov=None) -> analysis`.

        The forecast is the background; NaN in `obs` is unobserved, and where nothing is observed the forecast is the analysis; an operator
        or covariance given here replaces the method's own (pass the same objects again, and nothing is compiled again).
        """

        last: tuple[Any, Any, VariationalMethod] = (None, None, self)  # so that a series compiles its step once

        def step(forecast: Any, obs: Any, *, obs_op: ObsOp | None = None, obs_err_cov: Any = None) -> jax.Array:
            nonlocal last
            if last[0] is not obs_op or last[1] is not obs_err_cov:
                last = (obs_op, obs_err_cov, self.with_observation(obs_op, obs_err_cov))
            method = last[2]
            obs = jnp.asarray(obs)
            seen = ~jnp.isnan(obs)
            batch = Batch(input=jnp.where(seen, obs, 0), mask=seen.astype(obs.dtype), background=jnp.asarray(forecast))
            analysis: Analysis = method._map(method._program("solve", method._solve_all), batch, allow_unobserved=True)
            method._warn(analysis.solve)
            return analysis.state

        return step

    def with_observation(self, obs_op: ObsOp | None = None, obs_cov: Any = None) -> VariationalMethod:
        """A copy with another operator or error covariance."""
        other = self._copy()
        other._observe(self.obs_op if obs_op is None else obs_op, self.obs_cov if obs_cov is None else obs_cov)
        return other

    def with_background_cov(self, background_cov: Any) -> VariationalMethod:
        """A copy with another covariance of the background, such as that of the day's ensemble."""
        other = self._copy()
        other.background_cov = as_covariance(background_cov, self.background_cov.size, "background_cov")
        return other

    def _copy(self) -> VariationalMethod:
        other = copy.copy(self)
        other._programs = {}  # those of the original know its operators
        return other

    # -- batches ----------------------------------------------------------------------------------------------------------------------

    def _one(self, element: Batch) -> tuple[Analysis, Problem]:
        problem = self.problem(element)
        solve = self.minimiser(problem.residual, problem.start)
        return Analysis(problem.state_of(solve.control), solve), problem

    def _program(self, name: Any, make: Callable[[], Any]) -> Any:
        """`make()`, once for each name."""
        if name not in self._programs:
            self._programs[name] = make()
        return self._programs[name]

    def _warn(self, solve: Solve) -> None:
        if not isinstance(solve.status, jax.core.Tracer) and not bool(solve.converged.all()):
            warnings.warn(f"{type(self).__name__}: {describe(solve)}; see the status of each", NotConverged, stacklevel=3)

    def _solve_all(self) -> Any:
        return over_cores(jax.vmap(lambda element: self._one(element)[0]))

    def _push_state(self, parts: Any, white: jax.Array) -> jax.Array:
        element, control, root = parts
        return jax.jvp(self.problem(element).state_of, (control,), (root(white),))[1]

    def _push_window(self, parts: Any, white: jax.Array) -> jax.Array:
        element, control, root = parts
        return jax.jvp(self.problem(element).window_of, (control,), (root(white),))[1]

    def _posterior_all(self, covariance: CovarianceStrategy, window: bool) -> Any:
        def one(element: Batch, key: jax.Array) -> Any:
            analysis, problem = self._one(element)
            control = analysis.solve.control
            root = covariance.root(problem, control, self.minimiser, key)
            log_evidence = jnp.where(root.rest == 0, jnp.nan, root.log_det + problem.log_noise - analysis.solve.cost)
            mean = problem.window_of(control) if window else analysis.state
            return mean, (element, control, root), analysis.solve, log_evidence

        def all_of(elements: Batch, key: jax.Array) -> Any:
            # a key for each element by its place, so that cutting a batch changes nothing
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(elements.input.shape[0]))
            return jax.vmap(one)(elements, keys)

        return jax.jit(all_of)

    def _map(self, function: Any, batch: Batch, *args: Any, allow_unobserved: bool = False) -> Any:
        """`function` over the elements of a checked batch, its leading axes made one and restored."""
        if batch.background is None:
            raise ConfigError("expected a background to start from, got None; do pass Batch(..., background=x_b)")
        lead = jnp.shape(batch.input)[: max(0, jnp.ndim(batch.input) - len(self.obs_shape) - self.in_window)]
        batch = batch._replace(target=None)
        if not traced(batch):
            batch = check_batch(batch, self._spec(batch, lead), allow_unobserved=allow_unobserved)
        if not self.in_window:
            rank = len(lead)
            seen = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, rank), batch._replace(background=None))
            batch = seen._replace(background=batch.background)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(lead) :]), batch)
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), function(flat, *args))

    def _spec(self, batch: Batch, lead: tuple[int, ...]) -> Batch:
        dtype = jnp.result_type(float)
        times = jnp.shape(batch.input)[len(lead) : len(lead) + 1] if self.in_window else ()
        seen = jax.ShapeDtypeStruct((*times, *self.obs_shape), dtype)
        scale = None if batch.noise_scale is None else seen
        return Batch(input=seen, mask=seen, background=jax.ShapeDtypeStruct(self.background_shape, dtype), noise_scale=scale)


class ThreeDVar(VariationalMethod):
    """3D-Var: the most probable state given a background and what is observed at its own time.

    J(x) = ½‖x − x_b‖²_{B⁻¹} + ½‖y − H(x)‖²_{R⁻¹} over what is observed (Lorenc 1986, *Analysis methods for numerical weather prediction*).

    Args: as `VariationalMethod`; input and mask `(*batch, *obs)`, background `(*batch, *state)`.

    Example:
        >>> method = ThreeDVar((3,), background_cov=4.0, obs_cov=2.0)
        >>> method(Batch(input=y, mask=mask, background=x_b)).shape
        (32, 3)
    """

    in_window = False

    def problem(self, element: Batch) -> Problem:
        """The problem of one element."""
        seen = misfit(element, self.obs_cov)

        def state_of(w: jax.Array) -> jax.Array:
            return element.background + self.background_cov.root(w).reshape(self.state_shape)

        def residual(w: jax.Array) -> jax.Array:
            return jnp.concatenate([w, seen.misfit(self.obs_op(state_of(w))[None])])

        start = jnp.zeros(self.background_cov.white_size, element.background.dtype)
        return Problem(residual, state_of, lambda w: state_of(w)[None], start, seen.log_noise)


class OptimalInterpolation(ThreeDVar):
    """Optimal interpolation: x_b + B Hᵀ (H B Hᵀ + R)⁻¹ (y − H x_b), by one linear solve.

    In observation or state space, whichever is smaller (Gandin 1963; Daley 1991, *Atmospheric data analysis*, chapter 4).

    Args: as `ThreeDVar`, without minimiser.

    Raises:
        ConfigError: an operator that is not linear.

    Example:
        >>> OptimalInterpolation((3,), background_cov=4.0, obs_cov=2.0)(batch).shape
        (32, 3)
    """

    def __init__(self, state_shape: tuple[int, ...], *, background_cov: Any, obs_cov: Any = None, obs_op: ObsOp | None = None) -> None:
        super().__init__(state_shape, background_cov=background_cov, obs_cov=obs_cov, obs_op=obs_op)
        require_linear(self.obs_op, self.state_shape)
        self.minimiser = _solve_linear  # type: ignore[assignment]

    def with_observation(self, obs_op: ObsOp | None = None, obs_cov: Any = None) -> VariationalMethod:
        if obs_op is not None:
            require_linear(obs_op, self.state_shape)
        return super().with_observation(obs_op, obs_cov)


@full_precision
def _solve_linear(residual: Callable[[jax.Array], jax.Array], start: jax.Array) -> Solve:
    """argmin ½‖w − c‖² + ½‖G w − d‖² of r(w) = (w − c, G w − d), in the smaller of the two spaces."""
    n = start.size
    values = residual(start)
    prior, seen = values[:n], values[n:]
    direction = jax.jacrev if seen.size < n else jax.jacfwd
    jacobian = direction(lambda w: residual(w)[n:])(start)
    right = jacobian @ prior - seen
    if seen.size < n:
        gram = jnp.eye(seen.size, dtype=start.dtype) + jacobian @ jacobian.T
        increment = jacobian.T @ jax.scipy.linalg.solve(gram, right, assume_a="pos")
    else:
        gram = jnp.eye(n, dtype=start.dtype) + jacobian.T @ jacobian
        increment = jax.scipy.linalg.solve(gram, jacobian.T @ right, assume_a="pos")
    control = start - prior + increment
    value = 0.5 * jnp.square(residual(control)).sum()
    status = jnp.where(jnp.isfinite(value), Status.CONVERGED, Status.NOT_FINITE).astype(jnp.int32)
    return Solve(control, value, jnp.zeros((), start.dtype), jnp.ones((), jnp.int32), status)
