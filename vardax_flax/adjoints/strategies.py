"""Strategies that receive the step of an iteration and run it: they differ only in what its derivative is, and what that costs.

| adjoint | gradient | memory, in carries | steps run backwards |
|---|---|---|---|
| `RecursiveCheckpointAdjoint` | of the n steps, exactly | about 2 √n, and the inside of one step | 3 n |
| `KStepAdjoint(k)` | of the last k steps; off by O(ρᵏ) where the iteration contracts by ρ | k, and the inside of each | k |
| `OneStepAdjoint` | of the last step | 1, and its inside | 1 |
| `ImplicitAdjoint` | of the fixed point that the n steps approach | 1, its inside, 20 vectors of GMRES | those of a linear solve |

Each is a frozen dataclass, so that a configuration names it, and an optimistix adjoint, so that `optimistix.minimise` and
`optimistix.fixed_point` take it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax.flatten_util import ravel_pytree

from vardax_flax.adjoints.loops import Step, checkpointed, last_steps, repeat
from vardax_flax.core.config import ConfigError, check_choices, closest, require

CLOSE = 0.01  # relative residual of a linear system beyond which it counts as unsolved


class Adjoint(optx.AbstractAdjoint):
    """Interface of a way to differentiate carry_n = step(args, step(args, … carry_0))."""

    kind: ClassVar[str]

    @abc.abstractmethod
    def run(self, step: Step, args: Any, carry: Any, length: int) -> Any:
        """The carry after `length` steps.

        Args:
            step: `(args, carry) ↦ carry`. Gradients flow to `args`, not to what the function closes over.
            args: whatever the step depends on, a pytree.
            carry: the first one, a pytree.
            length: steps, at least 1.
        """


class RecursiveCheckpointAdjoint(Adjoint):
    """The exact gradient of all steps, with about 2 √n carries kept and the rest computed anew.

    Reference: Griewank 1992, *Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation*.

    Args:
        keep_all: keep the inside of every step instead: the fastest, and the largest.

    Example:
        >>> RecursiveCheckpointAdjoint().run(lambda a, x: a * x, jnp.array(0.5), jnp.array(1.0), 3)
        Array(0.125, dtype=float32)
    """

    kind: ClassVar[str] = "checkpoint"
    keep_all: bool = eqx.field(static=True, default=False)

    def run(self, step: Step, args: Any, carry: Any, length: int) -> Any:
        require(length > 0, "length > 0 steps", length, "pass a positive number")
        return (repeat if self.keep_all else checkpointed)(step, args, carry, length)

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: Any) -> Any:
        """For optimistix, where the number of steps is not known before: its own online checkpoints."""
        return optx.RecursiveCheckpointAdjoint().apply(primal_fn, rewrite_fn, inputs, tags)


class KStepAdjoint(Adjoint):
    """The gradient of the last k steps: what came before counts as given.

    Where the iteration contracts by ρ < 1 the error falls like ρᵏ (Shaban et al. 2019, *Truncated back-propagation for bilevel
    optimization*; Bolte, Pauwels & Vaiter 2023, *One-step differentiation of iterative algorithms*).

    Args:
        k: steps, at least 1; as many as the iteration has give the exact gradient.

    Raises:
        ConfigError: k is not positive.

    Example:
        >>> jax.grad(lambda a: KStepAdjoint(2).run(lambda a, x: a + 0.5 * x, a, jnp.array(0.0), 20))(1.0)
        Array(1.5, dtype=float32, weak_type=True)
    """

    kind: ClassVar[str] = "k_step"
    k: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        require(self.k >= 1, "k >= 1 steps", self.k, "pass a positive number")

    def run(self, step: Step, args: Any, carry: Any, length: int) -> Any:
        require(length > 0, "length > 0 steps", length, "pass a positive number")
        free = max(length - self.k, 0)
        if free:
            carry = jax.lax.stop_gradient(repeat(step, *jax.lax.stop_gradient((args, carry)), free))
        return repeat(step, args, carry, length - free)

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: Any) -> Any:
        """For optimistix: its loop runs to its end without a gradient, and its last k steps once more with one.

        Trial steps that a line search refuses count as steps, so that a tolerance near rounding leaves none that moves.
        """
        # an iteration of a minimiser moves along the gradient that the one before it evaluated
        late = isinstance(inputs[1], optx.AbstractMinimiser | optx.AbstractLeastSquaresSolver)
        return primal_fn((*inputs, last_steps(self.k + late)))


class OneStepAdjoint(Adjoint):
    """The gradient of the last step alone, `KStepAdjoint(1)`: as cheap as no solver at all.

    Exact in the limit of a quadratically convergent iteration (Bolte, Pauwels & Vaiter 2023, *One-step differentiation of iterative
    algorithms*).

    Example:
        >>> jax.grad(lambda a: OneStepAdjoint().run(lambda a, x: a + 0.5 * x, a, jnp.array(0.0), 20))(1.0)
        Array(1., dtype=float32, weak_type=True)
    """

    kind: ClassVar[str] = "one_step"

    def run(self, step: Step, args: Any, carry: Any, length: int) -> Any:
        return KStepAdjoint(1).run(step, args, carry, length)

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: Any) -> Any:
        """For optimistix, as `KStepAdjoint(1)`."""
        return KStepAdjoint(1).apply(primal_fn, rewrite_fn, inputs, tags)


class ImplicitAdjoint(Adjoint):
    """The gradient of the fixed point c* = step(args, c*) that the steps approach, by the implicit function theorem.

    v̄ ↦ (∂step/∂args)ᵀ w with (I − ∂step/∂c)ᵀ w = v̄, both at the last carry (Bai, Kolter & Koltun 2019, *Deep equilibrium models*). It
    has no meaning before the iteration has converged, and no gradient by the first carry. The whole carry is one system, so a batch is
    solved to the tolerance of its sum.

    A solver whose steps do nothing, as an untrained one, has no fixed point of its own, and the system no solution. What happens where the
    linear solver does not come within 1 % of one is said by `otherwise`.

    Args:
        solver: of the linear system: "gmres", or "neumann", the series w = Σ_j ((∂step/∂c)ᵀ)ʲ v̄, which converges where the steps do.
        tolerance: relative residual at which it stops.
        max_steps: of the linear solver.
        otherwise: without a solution, "one_step" takes w = v̄, the gradient of the last step (Fung et al. 2022, *JFB: Jacobian-free
            backpropagation for implicit networks*); "nan" makes the gradient NaN, at which `fit` stops.

    Raises:
        ConfigError: an unknown solver, a tolerance or number of steps that is not positive.

    Example:
        >>> jax.grad(lambda a: ImplicitAdjoint().run(lambda a, x: a + 0.5 * x, a, jnp.array(0.0), 50))(1.0)
        Array(2., dtype=float32, weak_type=True)
    """

    kind: ClassVar[str] = "implicit"
    solver: Literal["gmres", "neumann"] = eqx.field(static=True, default="gmres")
    tolerance: float = eqx.field(static=True, default=1e-6)
    max_steps: int = eqx.field(static=True, default=100)
    otherwise: Literal["one_step", "nan"] = eqx.field(static=True, default="one_step")

    def __check_init__(self) -> None:
        check_choices(self)
        require(self.tolerance > 0 and self.max_steps > 0, "a positive tolerance and number of steps", self, "pass positive ones")

    def run(self, step: Step, args: Any, carry: Any, length: int) -> Any:
        require(length > 0, "length > 0 steps", length, "pass a positive number")

        @jax.custom_vjp
        def fixed_point(args: Any, carry: Any) -> Any:
            return repeat(step, args, carry, length)

        def forward(args: Any, carry: Any) -> tuple[Any, tuple[Any, Any]]:
            last = repeat(step, args, carry, length)
            return last, (args, last)

        def backward(kept: tuple[Any, Any], cotangent: Any) -> tuple[Any, Any]:
            args, last = kept
            flat, unravel = ravel_pytree(cotangent)
            _, to_carry = jax.vjp(lambda carry: step(args, carry), last)
            pull = lambda w: ravel_pytree(to_carry(unravel(w))[0])[0]  # noqa: E731
            found = self._solve(pull, flat)
            missing = jnp.linalg.norm(found - pull(found) - flat)
            w = unravel(jnp.where(missing <= CLOSE * jnp.linalg.norm(flat), found, flat if self.otherwise == "one_step" else jnp.nan))
            _, to_args = jax.vjp(lambda args: step(args, last), args)
            return to_args(w)[0], jax.tree.map(jnp.zeros_like, last)

        fixed_point.defvjp(forward, backward)
        return fixed_point(args, carry)

    def _solve(self, pull: Callable[[jax.Array], jax.Array], v: jax.Array) -> jax.Array:
        """w with w − pull(w) = v."""
        if self.solver == "gmres":
            restart = min(self.max_steps, 20, v.size)
            # its default takes the steps of one restart at a time, whose vectors it keeps
            cycles = -(-self.max_steps // restart)
            solved = jax.scipy.sparse.linalg.gmres(lambda w: w - pull(w), v, tol=self.tolerance, restart=restart, maxiter=cycles)
            return solved[0]
        enough = self.tolerance * jnp.linalg.norm(v)

        def more(loop: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            _, term, i = loop
            return (jnp.linalg.norm(term) > enough) & (i < self.max_steps)

        def add(loop: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            total, term, i = loop
            term = pull(term)
            return total + term, term, i + 1

        return jax.lax.while_loop(more, add, (v, v, jnp.zeros((), int)))[0]

    def apply(self, primal_fn: Any, rewrite_fn: Any, inputs: Any, tags: Any) -> Any:
        """For optimistix, whose rewritten problem need not contract: by GMRES whatever `solver` is."""
        gmres = lx.GMRES(rtol=self.tolerance, atol=self.tolerance, max_steps=self.max_steps)
        return optx.ImplicitAdjoint(gmres).apply(primal_fn, rewrite_fn, inputs, tags)


AdjointConfig = RecursiveCheckpointAdjoint | KStepAdjoint | OneStepAdjoint | ImplicitAdjoint
_NO_TWIN = {
    "DirectAdjoint": "the loop of optimistix is not unrolled",
    "BacksolveAdjoint": "it runs a differential equation backwards, and there is none in a solver",
}


def to_optimistix_adjoint(spec: Any) -> optx.AbstractAdjoint:
    """The adjoint for `optimistix.minimise` and `fixed_point` that a diffrax adjoint, a class or a name stands for.

    `RecursiveCheckpointAdjoint` and `ImplicitAdjoint` map to those of optimistix, with their checkpoints and linear solver where they
    have any; `KStepAdjoint` and `OneStepAdjoint` to ours; what already is an optimistix adjoint is returned as it is.

    Args:
        spec: an adjoint of optimistix, diffrax or ours, its class, or the name of the class.

    Raises:
        ConfigError: `DirectAdjoint` and `BacksolveAdjoint`, which optimistix has none of, or an unknown name.

    Example:
        >>> to_optimistix_adjoint(diffrax.RecursiveCheckpointAdjoint(checkpoints=8)).checkpoints
        8
    """
    if isinstance(spec, optx.AbstractAdjoint):
        return spec
    given = spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
    known = {
        "RecursiveCheckpointAdjoint": lambda: optx.RecursiveCheckpointAdjoint(getattr(spec, "checkpoints", None)),
        "ImplicitAdjoint": lambda: optx.ImplicitAdjoint(*([spec.linear_solver] if hasattr(spec, "linear_solver") else [])),
        "KStepAdjoint": KStepAdjoint,
        "OneStepAdjoint": OneStepAdjoint,
    }
    if given in _NO_TWIN:
        raise ConfigError(f"expected an adjoint that optimistix has, got {given} ({_NO_TWIN[given]}); do pick RecursiveCheckpointAdjoint")
    require(given in known, f"an adjoint of {', '.join(known)}", given, f"pick one{closest(given, known)}")
    return known[given]()
