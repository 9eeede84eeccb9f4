"""Four-dimensional methods: a model carries the state through a window of observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vardax_flax.assimilation.covariance import as_covariance
from vardax_flax.assimilation.methods import VariationalMethod
from vardax_flax.assimilation.models import trajectory
from vardax_flax.assimilation.observation import ObsOp
from vardax_flax.assimilation.problem import Problem, Step, misfit
from vardax_flax.assimilation.solve import GaussNewton, Minimiser
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.ops.precision import full_precision

Strategy = Callable[[Step], Step]  # what is done to a model step before it is differentiated: jax.checkpoint, for instance


class _FourDVar(VariationalMethod):
    """What the four-dimensional methods share: x_{t+1} = M(x_t) between observed times, and where the first of them lies."""

    def __init__(
        self, state_shape: tuple[int, ...], step: Step, *, background_cov: Any, obs_cov: Any = None, obs_op: ObsOp | None = None,
        minimiser: Minimiser | None = None, observed_at_start: bool = True, forward_adjoint: Strategy | None = None,
        background_shape: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            state_shape, background_cov=background_cov, obs_cov=obs_cov, obs_op=obs_op, minimiser=minimiser,
            background_shape=background_shape,
        )  # fmt: skip
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
        return _strong(self, element, _around_background(self, element), self.background_cov.white_size)


def _around_background(method: _FourDVar, element: Batch) -> Step:
    """w ↦ x_b + B^{½} w."""
    return lambda w: element.background + method.background_cov.root(w).reshape(method.state_shape)


def _strong(method: _FourDVar, element: Batch, state_of: Step, size: int) -> Problem:
    """The problem whose control c `(size,)` says x₀ = `state_of(c)`, and x₀ all the rest."""
    seen = misfit(element, method.obs_cov)

    def window_of(control: jax.Array) -> jax.Array:
        return trajectory(method.step, state_of(control), method._steps(element))

    def residual(control: jax.Array) -> jax.Array:
        return jnp.concatenate([control, seen.misfit(method._predict(window_of(control)))])

    return Problem(residual, state_of, window_of, jnp.zeros(size, element.background.dtype), seen.log_noise)


class IncrementalFourDVar(_FourDVar):
    """Incremental 4D-Var: Gauss–Newton outer loops, each a quadratic problem for the increment by truncated conjugate gradients.

    With χ = B^{−½} δx the inner problem is (I + Gᵀ R⁻¹ G) χ = …, G the tangent linear model (Courtier, Thépaut & Hollingsworth 1994). An
    inner loop cut short gives a shorter step; a step that would raise J is damped and tried again, so J never rises.

    Args:
        state_shape, step, background_cov, obs_cov, obs_op, observed_at_start, forward_adjoint: as `StrongFourDVar`.
        outer, inner, inner_tolerance, tolerance: iterations at most, and where they may end before, as `GaussNewton`.
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
        outer: int = 50, inner: int = 50, inner_tolerance: float = 1e-4, tolerance: float | None = None, damping: float = 0.0,
        basis: Any = None, observed_at_start: bool = True, forward_adjoint: Strategy | None = None,
    ) -> None:  # fmt: skip
        minimiser = GaussNewton(outer, inner, inner_tolerance, damping, tolerance)
        super().__init__(
            state_shape, step, background_cov=background_cov, obs_cov=obs_cov, obs_op=obs_op, minimiser=minimiser,
            observed_at_start=observed_at_start, forward_adjoint=forward_adjoint,
        )  # fmt: skip
        self.basis = None if basis is None else orthonormal(basis, self.size)

    def problem(self, element: Batch) -> Problem:
        """The problem of one element."""
        if self.basis is None:
            return _strong(self, element, _around_background(self, element), self.background_cov.white_size)
        whole = self.background_cov.white_size
        require(whole == self.size, f"a square root of B, {self.size} columns, under a basis", whole, "drop the basis or the ensemble")
        basis, move = self.basis.astype(element.background.dtype), _around_background(self, element)
        return _strong(self, element, full_precision(lambda c: move(basis @ c)), basis.shape[1])


class LatentFourDVar(_FourDVar):
    """Strong-constraint 4D-Var in the latent space of a decoder: the analysis never leaves what the decoder can say.

    J(z) = ½‖z − z_b‖²_{B⁻¹} + ½ Σ_t ‖y_t − H(x_t)‖²_{R⁻¹}, x₀ = D(z), x_{t+1} = M(x_t) (Peyron et al. 2021, *Latent space data assimilation
    by using deep learning*). What is inferred is x₀ = D(z); `solve` has z = z_b + B^{½} w as the control w.

    Args:
        state_shape, step, obs_cov, obs_op, minimiser, observed_at_start, forward_adjoint: as `StrongFourDVar`.
        decoder: D, from a latent `(*latent,)` to a state; any differentiable callable.
        latent_shape: of z.
        background_cov: B of the flat z.
        encoder: from a state to z; then the background of a batch is a state, and the method can cycle. None: it is z_b itself.

    Raises:
        ConfigError: a decoder to another shape than a state, an encoder to another than a latent, as `StrongFourDVar`.

    Example:
        >>> method = LatentFourDVar((40,), step, decoder=D, latent_shape=(8,), background_cov=1.0, obs_cov=1.0)
        >>> method(Batch(input=y, mask=mask, background=z_b)).shape       # z_b (32, 8)
        (32, 40)
    """

    def __init__(
        self, state_shape: tuple[int, ...], step: Step, *, decoder: Step, latent_shape: tuple[int, ...], background_cov: Any,
        encoder: Step | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.latent_shape = tuple(latent_shape)
        self.decoder, self.encoder = decoder, encoder
        super().__init__(state_shape, step, background_cov=background_cov, background_shape=self.latent_shape, **options)
        latent = jax.ShapeDtypeStruct(self.latent_shape, jnp.result_type(float))
        decoded = jax.eval_shape(decoder, latent).shape
        require(decoded == self.state_shape, f"a decoder to {self.state_shape}", decoded, "pass decoder(latent) -> state")
        if encoder is not None:
            self.background_shape = self.state_shape
            encoded = jax.eval_shape(encoder, self._struct()).shape
            require(encoded == self.latent_shape, f"an encoder to {self.latent_shape}", encoded, "pass encoder(state) -> latent")

    def problem(self, element: Batch) -> Problem:
        """The problem of one element."""
        first = element.background if self.encoder is None else self.encoder(element.background)
        root = self.background_cov.root
        return _strong(self, element, lambda w: self.decoder(first + root(w).reshape(self.latent_shape)), self.background_cov.white_size)


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
        first, each, steps = self.background_cov.white_size, self.model_cov.white_size, self._steps(element)

        def window_of(control: jax.Array) -> jax.Array:
            x0 = _around_background(self, element)(control[:first])

            def forward(x: jax.Array, white: jax.Array) -> tuple[jax.Array, jax.Array]:
                x = self.step(x) + self.model_cov.root(white).reshape(self.state_shape)
                return x, x

            _, later = jax.lax.scan(forward, x0, control[first:].reshape(steps, each))
            return jnp.concatenate([x0[None], later])

        def residual(control: jax.Array) -> jax.Array:
            return jnp.concatenate([control, seen.misfit(self._predict(window_of(control)))])

        start = jnp.zeros(first + steps * each, element.background.dtype)
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
