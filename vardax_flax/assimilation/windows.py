"""Four-dimensional methods: a model carries the state through a window of observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vardax_flax.assimilation.covariance import as_covariance
from vardax_flax.assimilation.methods import VariationalMethod
from vardax_flax.assimilation.observation import ObsOp
from vardax_flax.assimilation.problem import Problem, Step, misfit
from vardax_flax.assimilation.solve import GaussNewton, Minimiser
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require

Strategy = Callable[[Step], Step]  # what is done to a model step before it is differentiated: jax.checkpoint, for instance


class _FourDVar(VariationalMethod):
    """What the four-dimensional methods share: x_{t+1} = M(x_t) between observed times, and where the first of them lies."""

    def __init__(
        self, state_shape: tuple[int, ...], step: Step, *, background_cov: Any, obs_cov: Any = None, obs_op: ObsOp | None = None,
        minimiser: Minimiser | None = None, observed_at_start: bool = True, forward_adjoint: Strategy | None = None,
    ) -> None:  # fmt: skip
        super().__init__(state_shape, background_cov=background_cov, obs_cov=obs_cov, obs_op=obs_op, minimiser=minimiser)
        moved = jax.eval_shape(step, self._struct()).shape
        require(moved == self.state_shape, f"a step from {self.state_shape} to the same shape", moved, "pass step(state) -> state")
        self.step = step if forward_adjoint is None else forward_adjoint(step)
        self.observed_at_start = observed_at_start

    def _steps(self, element: Batch) -> int:
        return element.input.shape[0] - self.observed_at_start

    def _predict(self, window: jax.Array) -> jax.Array:
        return jax.vmap(self.obs_op)(window if self.observed_at_start else window[1:])


class StrongFourDVar(_FourDVar):
    """Strong-constraint 4D-Var: the initial state whose perfect trajectory fits the background and every observation of the window best.

    J(x₀) = ½‖x₀ − x_b‖²_{B⁻¹} + ½ Σ_t ‖y_t − H(x_t)‖²_{R⁻¹}, x_{t+1} = M(x_t) (Le Dimet & Talagrand 1986). What is inferred
    is x₀; the posterior of the window is that of the whole trajectory.

    Args:
        state_shape: of one state.
        step: M, from one observed time to the next; any differentiable `step(state) -> state` (`DiffraxStep` integrates an ODE).
        background_cov, obs_cov, obs_op, minimiser: as `VariationalMethod`; L-BFGS unless told.
        observed_at_start: whether the first observation is of x₀ itself; otherwise of M(x₀).
        forward_adjoint: applied to `step` before anything is differentiated, `jax.checkpoint` for instance.

    Raises:
        ConfigError: a step to another shape, a covariance of another size.

    Example:
        >>> method = StrongFourDVar((3,), step, background_cov=4.0, obs_cov=2.0, observed_at_start=False)
        >>> method(Batch(input=y, mask=mask, background=x_b)).shape       # y (32, 10, 3)
        (32, 3)
    """

    def problem(self, element: Batch) -> Problem:
        """The problem of one element."""
        return _strong(self, element, lambda w: w, jnp.zeros(self.size, element.background.dtype))


def _strong(method: _FourDVar, element: Batch, white_of: Step, start: jax.Array) -> Problem:
    """x₀ = x_b + B^{½} Φ c for a control c, Φ = `white_of` with orthonormal columns."""
    seen = misfit(element, method.obs_cov)

    def state_of(control: jax.Array) -> jax.Array:
        return element.background + method.background_cov.root(white_of(control)).reshape(method.state_shape)

    def window_of(control: jax.Array) -> jax.Array:
        x0 = state_of(control)

        def forward(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            x = method.step(x)
            return x, x

        _, later = jax.lax.scan(forward, x0, None, length=method._steps(element))
        return jnp.concatenate([x0[None], later])

    def residual(control: jax.Array) -> jax.Array:
        return jnp.concatenate([control, seen.misfit(method._predict(window_of(control)))])

    return Problem(residual, state_of, window_of, start, seen.log_noise)


class IncrementalFourDVar(_FourDVar):
    """Incremental 4D-Var: Gauss–Newton outer loops, each a quadratic problem for the increment by truncated conjugate gradients.

    With χ = B^{−½} δx the inner problem is (I + Gᵀ R⁻¹ G) χ = …, G the tangent linear model (Courtier, Thépaut & Hollingsworth 1994). An
    inner loop cut short gives a shorter step; a step that would raise J is damped and tried again, so J never rises.

    Args:
        state_shape, step, background_cov, obs_cov, obs_op, observed_at_start, forward_adjoint: as `StrongFourDVar`.
        outer, inner: iterations at most.
        damping: Levenberg–Marquardt's first λ.
        basis: reduced space of increments: `(size, k)`, δx = B^{½} Φ c with Φ the columns made orthonormal (`fourier_basis`,
            `wavelet_basis`, `eof_basis` or any other); None takes the full space.

    Raises:
        ConfigError: as `StrongFourDVar`; a basis of other rows or of dependent columns.

    Example:
        >>> method = IncrementalFourDVar((40,), step, background_cov=1.0, obs_cov=1.0, outer=3, inner=20)
        >>> method.solve(batch).solve.status
    """

    def __init__(
        self, state_shape: tuple[int, ...], step: Step, *, background_cov: Any, obs_cov: Any = None, obs_op: ObsOp | None = None,
        outer: int = 50, inner: int = 50, damping: float = 0.0, basis: Any = None, observed_at_start: bool = True,
        forward_adjoint: Strategy | None = None,
    ) -> None:  # fmt: skip
        minimiser = GaussNewton(outer=outer, inner=inner, damping=damping)
        super().__init__(
            state_shape, step, background_cov=background_cov, obs_cov=obs_cov, obs_op=obs_op, minimiser=minimiser,
            observed_at_start=observed_at_start, forward_adjoint=forward_adjoint,
        )  # fmt: skip
        self.basis = None if basis is None else orthonormal(basis, self.size)

    def problem(self, element: Batch) -> Problem:
        """The problem of one element."""
        dtype = element.background.dtype
        if self.basis is None:
            return _strong(self, element, lambda w: w, jnp.zeros(self.size, dtype))
        basis = self.basis.astype(dtype)
        return _strong(self, element, lambda c: basis @ c, jnp.zeros(basis.shape[1], dtype))


class WeakFourDVar(_FourDVar):
    """Weak-constraint 4D-Var: the model errs, and the errors are inferred with the initial state.

    J = ½‖x₀ − x_b‖²_{B⁻¹} + ½ Σ ‖η_t‖²_{Q⁻¹} + ½ Σ ‖y_t − H(x_t)‖²_{R⁻¹}, x_{t+1} = M(x_t) + η_{t+1} (Trémolet 2006, *Accounting for an
    imperfect model in 4D-Var*). What is inferred is the window of states `(*batch, times, *state)`.

    Args:
        state_shape, step, background_cov, obs_cov, obs_op, minimiser, observed_at_start, forward_adjoint: as `StrongFourDVar`.
        model_cov: Q, as B.

    Example:
        >>> WeakFourDVar((20,), step, background_cov=B, model_cov=Q, obs_cov=0.5)(batch).shape       # y (4, 10, 20)
        (4, 10, 20)
    """

    def __init__(self, state_shape: tuple[int, ...], step: Step, *, background_cov: Any, model_cov: Any, **options: Any) -> None:
        super().__init__(state_shape, step, background_cov=background_cov, **options)
        self.model_cov = as_covariance(model_cov, self.size, "model_cov")

    def problem(self, element: Batch) -> Problem:
        """The problem of one element."""
        seen = misfit(element, self.obs_cov)
        times = self._steps(element) + 1

        def window_of(control: jax.Array) -> jax.Array:
            first, *_ = rows = control.reshape(times, self.size)
            x0 = element.background + self.background_cov.root(first).reshape(self.state_shape)

            def forward(x: jax.Array, white: jax.Array) -> tuple[jax.Array, jax.Array]:
                x = self.step(x) + self.model_cov.root(white).reshape(self.state_shape)
                return x, x

            _, later = jax.lax.scan(forward, x0, jnp.asarray(rows[1:]))
            return jnp.concatenate([x0[None], later])

        def residual(control: jax.Array) -> jax.Array:
            return jnp.concatenate([control, seen.misfit(self._predict(window_of(control)))])

        start = jnp.zeros(times * self.size, element.background.dtype)
        return Problem(residual, window_of, window_of, start, seen.log_noise)


def orthonormal(basis: Any, size: int) -> jax.Array:
    """An orthonormal basis of the space that the columns span.

    Raises:
        ConfigError: other rows than `size`, or dependent columns.
    """
    basis = jnp.asarray(basis)
    require(basis.ndim == 2 and basis.shape[0] == size, f"a basis ({size}, k)", basis.shape, "pass one row for each component of the state")
    require(basis.shape[1] <= size, f"at most {size} columns", basis.shape[1], "drop the dependent ones")
    q, r = jnp.linalg.qr(basis)
    least = float(jnp.abs(jnp.diagonal(r)).min() / jnp.abs(jnp.diagonal(r)).max())
    require(least > 1e3 * float(jnp.finfo(q.dtype).eps), "independent columns", f"a ratio of {least:.1g}", "drop the dependent ones")
    return q
