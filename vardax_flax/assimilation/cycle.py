"""From one window to a long series: cycles, and starts from several points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vardax_flax.assimilation.methods import Analysis, VariationalMethod
from vardax_flax.assimilation.solve import Solve
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require


class MultiStart(NamedTuple):
    """The lowest of several minima.

    Args:
        analysis: of the lowest.
        costs: of every start `(*batch, n_starts)`, the background first.
    """

    analysis: Analysis
    costs: jax.Array


def multi_start(method: VariationalMethod, batch: Batch, n_starts: int, key: jax.Array, *, spread: float = 1.0) -> MultiStart:
    """The analysis from the background and n − 1 draws around it, the lowest kept: for windows with several minima.

    Args:
        method: any variational method.
        batch: observations and background.
        n_starts: of which the first is the background.
        key: of the others, w ~ N(0, spread² I).
        spread: in prior standard deviations.

    Example:
        >>> found = multi_start(method, batch, 16, jax.random.key(0))
        >>> found.analysis.state.shape, found.costs.shape
        ((32, 3), (32, 16))
    """
    require(n_starts >= 1, "at least one start", n_starts, "pass more")

    def one(element: Batch, key: jax.Array) -> MultiStart:
        problem = method.problem(element)
        noise = spread * jax.random.normal(key, (n_starts, *problem.start.shape), problem.start.dtype)
        starts = problem.start + noise.at[0].set(0)
        solves = jax.vmap(lambda start: method.minimiser(problem.residual, start))(starts)
        # one that has not converged counts only if none has
        order = jnp.where(solves.converged, solves.cost, jnp.inf)
        order = jnp.where(jnp.isfinite(order).any(), order, jnp.where(jnp.isfinite(solves.cost), solves.cost, jnp.inf))
        best: Solve = jax.tree.map(lambda leaf: leaf[jnp.argmin(order)], solves)
        return MultiStart(Analysis(problem.state_of(best.control), best), solves.cost)

    def all_of(elements: Batch, key: jax.Array) -> MultiStart:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(elements.input.shape[0]))
        return jax.vmap(one)(elements, keys)

    return method._map(jax.jit(all_of), batch, key)


class Cycled(NamedTuple):
    """A series of analyses.

    Args:
        background: what each window started from `(windows, *state)`.
        analysis: of the start of each window `(windows, *state)`; of a method without window, of its observation.
        newest: the analysis carried to the last observation of its window `(windows, *state)`.
        solve: how each ended.
    """

    background: jax.Array
    analysis: jax.Array
    newest: jax.Array
    solve: Solve


class Cycle:
    """Forecast → analysis → forecast … over a long series of observations: x_b' = M^shift(x_a).

    A window holds `window` observed times and moves on by `shift` of them. Where windows overlap, an observation is in the cost of each
    (`reuse`) or only of the first that holds it, which is what a static background covariance allows without counting it twice.

    Args:
        method: of one window; one without window (3D-Var, OI) analyses each observation in turn.
        step: M, from one observed time to the next.
        window: observed times of a window.
        shift: by which it moves on.
        reuse: whether an observation counts in every window that holds it.

    Raises:
        ConfigError: a shift outside 1 … window.

    Example:
        >>> cycled = Cycle(ThreeDVar((3,), background_cov=B, obs_cov=2.0), step).run(x_b, observations)
        >>> cycled.newest.shape
        (401, 3)
    """

    def __init__(
        self, method: VariationalMethod, step: Callable[[jax.Array], jax.Array], *, window: int = 1, shift: int = 1, reuse: bool = False
    ) -> None:
        require(1 <= shift <= window, f"a shift between 1 and {window}", shift, "pass overlapping or adjoining windows")
        require(method.in_window or window == 1, "a window of 1 for a method without window", window, "use a four-dimensional method")
        self.method, self.step, self.window, self.shift, self.reuse = method, step, window, shift, reuse

    def run(self, background: Any, observations: Any, mask: Any = None) -> Cycled:
        """The series from the first background `(*state)`.

        Args:
            background: the state one step before the first observation; of a method that observes its start, at it.
            observations: `(times, *obs)`; NaN is unobserved.
            mask: 1 observed, 0 not; of the shape of the observations.
        """
        observations = jnp.asarray(observations)
        require(len(observations) >= self.window, f"at least {self.window} observed times", len(observations), "pass more")
        seen = ~jnp.isnan(observations) if mask is None else (jnp.asarray(mask) != 0) & ~jnp.isnan(observations)
        return self._run(jnp.asarray(background, observations.dtype), jnp.where(seen, observations, 0), seen.astype(observations.dtype))

    def _run(self, background: jax.Array, y: jax.Array, mask: jax.Array) -> Cycled:
        starts = jnp.arange(0, len(y) - self.window + 1, self.shift)
        at_start = getattr(self.method, "observed_at_start", True) and self.method.in_window

        def advance(x: jax.Array, n: int) -> jax.Array:
            return jax.lax.fori_loop(0, n, lambda _, x: self.step(x), x)

        def cycle(x: jax.Array, start: jax.Array) -> tuple[jax.Array, Cycled]:
            rows = jax.lax.dynamic_slice_in_dim(y, start, self.window)
            seen = jax.lax.dynamic_slice_in_dim(mask, start, self.window)
            if not self.reuse:
                new = (jnp.arange(self.window) >= self.window - self.shift) | (start == 0)
                seen = seen * new.reshape(-1, *(1,) * (seen.ndim - 1)).astype(seen.dtype)
            if not self.method.in_window:
                x = self.step(x)
            element = Batch(input=rows, mask=seen, background=x)
            analysis, _ = self.method._one(element)
            first = analysis.state.reshape(-1, *x.shape)[0]
            newest = advance(first, self.window - at_start) if self.method.in_window else first
            following = advance(first, self.shift) if self.method.in_window else first
            return following, Cycled(x, first, newest, analysis.solve)

        return jax.jit(lambda x: jax.lax.scan(cycle, x, starts)[1])(background)


def root_mean_square(error: Any) -> jax.Array:
    """√ of the mean square over the components of each state, averaged over the times: `(times, *state) → ()`."""
    error = jnp.asarray(error)
    return jnp.sqrt(jnp.square(error).reshape(len(error), -1).mean(axis=1)).mean()
