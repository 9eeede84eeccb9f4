"""From one window to a long series: cycles, and starts from several points."""

from __future__ import annotations

import dataclasses
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

    return method._map(method._program(("multi_start", n_starts, spread), lambda: all_of), batch, key)


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


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a long series is cut: `window` observed times each, moved on by `shift`.

    Where windows overlap, an observation is in the cost of each (`reuse`) or only of the first that holds it, which is what a covariance of
    the background that knows the earlier analyses allows without counting it twice.
    """

    window: int = 1
    shift: int = 1
    reuse: bool = False

    def check(self, method: VariationalMethod) -> None:
        """Whether a method can cycle through them."""
        require(1 <= self.shift <= self.window, f"a shift between 1 and {self.window}", self.shift, "pass overlapping or adjoining windows")
        in_window = method.in_window
        require(in_window or self.window == 1, "a window of 1 for a method without window", self.window, "use a four-dimensional method")
        require(method.background_shape == method.state_shape, f"a background of shape {method.state_shape}, which a forecast has",
                method.background_shape, "pass an encoder to the method")  # fmt: skip

    def scan(self, method: VariationalMethod, analyse: Any, carry: Any, observations: Any, mask: Any) -> Any:
        """`analyse(carry, rows, seen) -> (carry, result)` window by window; the results stacked."""
        y = jnp.asarray(observations)
        expected = (*y.shape[:1], *method.obs_shape)
        require(y.shape == expected, f"observations {expected}", y.shape, "pass one row for each observed time, as the operator reads it")
        require(len(y) >= self.window, f"at least {self.window} observed times", len(y), "pass more")
        given = jnp.ones(y.shape) if mask is None else jnp.asarray(mask)
        require(given.shape == y.shape, f"a mask {y.shape}", given.shape, "pass 1 where observed and 0 elsewhere")
        seen = (given != 0) & ~jnp.isnan(y)
        y = jnp.where(seen, y, 0)
        if not isinstance(y, jax.core.Tracer):
            require(bool(jnp.isfinite(y).all()), "finite observations, or NaN where there is none", "infinity", "set the mask to 0 there")
        y, seen = y.astype(jnp.result_type(float)), seen.astype(jnp.result_type(float))

        def one(carry: Any, start: jax.Array) -> Any:
            rows, part = (jax.lax.dynamic_slice_in_dim(array, start, self.window) for array in (y, seen))
            if not self.reuse:
                new = (jnp.arange(self.window) >= self.window - self.shift) | (start == 0)
                part = part * new.reshape(-1, *(1,) * (part.ndim - 1)).astype(part.dtype)
            return analyse(carry, rows, part)

        starts = jnp.arange(0, len(y) - self.window + 1, self.shift)
        return jax.jit(lambda carry: jax.lax.scan(one, carry, starts)[1])(carry)


def follow(states: jax.Array, shift: int, step: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """What comes `shift` steps after the first of the states of a window `(times, *state)`."""
    return states[shift] if shift < len(states) else step(states[-1])


class Cycle:
    """Forecast → analysis → forecast … over a long series of observations: x_b' = M^shift(x_a).

    Of a weak-constraint window the model errors are kept: its forecast starts from what the window says of its later states.

    Args:
        method: of one window; one without window (3D-Var, OI) analyses each observation in turn.
        step: M, from one observed time to the next.
        window: observed times of a window.
        shift: by which it moves on.
        reuse: whether an observation counts in every window that holds it, or in the first alone, which is what a static background
            covariance allows without counting it twice.

    Raises:
        ConfigError: a shift outside 1 … window, observations or a background of another shape.

    Example:
        >>> cycled = Cycle(ThreeDVar((3,), background_cov=B, obs_cov=2.0), step).run(x_b, observations)
        >>> cycled.newest.shape
        (401, 3)
    """

    def __init__(
        self, method: VariationalMethod, step: Callable[[jax.Array], jax.Array], *, window: int = 1, shift: int = 1, reuse: bool = False
    ) -> None:
        self.method, self.step, self.windows = method, step, Windows(window, shift, reuse)
        self.windows.check(method)

    def run(self, background: Any, observations: Any, mask: Any = None) -> Cycled:
        """The series from the first background `(*state)`.

        Args:
            background: the state one step before the first observation; of a method that observes its start, at it.
            observations: `(times, *obs)`; NaN is unobserved.
            mask: 1 observed, 0 not; of the shape of the observations.
        """
        x = jnp.asarray(background, jnp.result_type(float))
        require(x.shape == self.method.state_shape, f"a background {self.method.state_shape}", x.shape, "pass one state")

        def analyse(x: jax.Array, rows: jax.Array, seen: jax.Array) -> tuple[jax.Array, Cycled]:
            if not self.method.in_window:
                x = self.step(x)
            analysis, problem = self.method._one(Batch(input=rows, mask=seen, background=x))
            states = problem.window_of(analysis.solve.control)
            following = follow(states, self.windows.shift, self.step) if self.method.in_window else states[0]
            return following, Cycled(x, states[0], states[-1], analysis.solve)

        return self.windows.scan(self.method, analyse, x, observations, mask)
