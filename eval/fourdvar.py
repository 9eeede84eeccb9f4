"""Window 4D-Var of any least-squares simulator: its analysis with several starts, its covariance, and solves from a given state."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.assimilation import GaussNewton, GaussNewtonHessian, LaplaceCovariance, Solve, VariationalMethod, multi_start
from vardax_flax.assimilation.problem import Problem
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import LeastSquares


class SimulatorFourDVar(VariationalMethod):
    """argmin ½‖r(x)‖² for the residual r of a simulator, over w with x = x_b + B^{½} w.

    Args:
        simulator: whose residual begins with B^{−½}(x − x_b), B the same for every element.
        minimiser: `GaussNewton()` unless told.

    Raises:
        ConfigError: a simulator without background.

    Example:
        >>> SimulatorFourDVar(Lorenz63()).solve(batch).state.shape
        (32, 3)
    """

    def __init__(self, simulator: LeastSquares, minimiser: GaussNewton | None = None) -> None:
        spec = simulator.spec
        require(spec.background is not None, "a simulator with a background", simulator.kind, "use a window with a Gaussian prior")
        shape = spec.target.shape
        size = math.prod(shape)
        element: Batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec)

        def prior(x: jax.Array) -> jax.Array:
            return simulator.residual(x.reshape(shape), element)[:size]

        self.whitener = np.asarray(jax.jit(jax.jacfwd(prior))(jnp.zeros(size)))
        self.root = np.linalg.inv(self.whitener)
        self.simulator = simulator
        cov = self.root @ self.root.T
        super().__init__(shape, background_cov=cov, obs_op=lambda x: simulator.predict(x)[0], minimiser=minimiser or GaussNewton())

    def problem(self, element: Batch) -> Problem:
        """The problem of one element."""
        background: Any = element.background

        def state_of(w: jax.Array) -> jax.Array:
            return background + (self.root @ w).reshape(self.state_shape)

        def residual(w: jax.Array) -> jax.Array:
            return self.simulator.residual(state_of(w), element)

        start = jnp.zeros(self.size, background.dtype)
        misfit = residual(start)[self.size :]
        log_noise = self.simulator.log_likelihood(background, element) + 0.5 * jnp.square(misfit).sum()
        return Problem(residual, state_of, lambda w: state_of(w)[None], start, log_noise)

    @functools.cached_property
    def solve_from(self) -> Any:
        """`(batch, states (events, *state)) ↦ Solve` with the minimiser started at the states instead of the background."""

        def one(element: Batch, x: jax.Array) -> Solve:
            start = self.whitener @ (x - element.background).reshape(-1)
            return self.minimiser(self.problem(element).residual, start)

        return jax.jit(lambda batch, states: jax.vmap(one)(batch._replace(target=None), states))


class WindowPosterior(NamedTuple):
    """Gaussian posteriors of some windows by 4D-Var.

    Args:
        mean: `(events, dim)`.
        root: R with covariance R Rᵀ `(events, dim, dim)`.
        solve: of the lowest minimum.
        costs: of every start `(events, starts)`, the background first.
        indefinite: where the Hessian was not positive definite and JᵀJ was taken instead `(events,)`.
    """

    mean: jax.Array
    root: jax.Array
    solve: Solve
    costs: jax.Array
    indefinite: jax.Array


def window_posterior(method: SimulatorFourDVar, batch: Batch, key: jax.Array, starts: int) -> WindowPosterior:
    """The lowest of several minima, and the inverse Hessian there: N(w*, (∇²J)⁻¹) in the control variable.

    Where the Hessian is indefinite, its Gauss–Newton part JᵀJ.

    Args:
        method: of the simulator.
        batch: observations and backgrounds, one leading axis.
        key: of the starts.
        starts: how many, the background among them.

    Example:
        >>> mean = jax.jit(lambda batch: window_posterior(method, batch, key, 8).mean)(batch)
    """
    batch = batch._replace(target=None)
    found = multi_start(method, batch, starts, key)

    def covariance(element: Batch, control: jax.Array) -> tuple[jax.Array, jax.Array]:
        problem = method.problem(element)
        eye = jnp.eye(control.size, dtype=control.dtype)
        roots: list[Any] = [s.root(problem, control, method.minimiser, key) for s in (LaplaceCovariance(), GaussNewtonHessian())]
        full, linear = (jax.vmap(root, out_axes=1)(eye) for root in roots)
        indefinite = ~jnp.isfinite(full).all()
        return jnp.asarray(method.root) @ jnp.where(indefinite, linear, full), indefinite

    solve = found.analysis.solve
    root, indefinite = jax.vmap(covariance)(batch, solve.control)
    return WindowPosterior(found.analysis.state.reshape(*solve.cost.shape, -1), root, solve, found.costs, indefinite)
