"""Gaussian posteriors of a window: what the curvature of the cost, or an ensemble of solutions, says about the error of an analysis."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vardax_flax.assimilation.problem import Problem
from vardax_flax.assimilation.solve import Solve
from vardax_flax.core.config import require
from vardax_flax.ops.blocks import map_blocks
from vardax_flax.ops.precision import full_precision

Solver = Callable[[Callable[[jax.Array], jax.Array], jax.Array], Solve]  # a minimiser, or what solves a linear problem at once
LARGEST = 4096  # components up to which a covariance or a Hessian is written out


class Root(NamedTuple):
    """A symmetric root in the control space: ξ ↦ rest (ξ − U Uᵀ ξ) + U (g ⊙ Uᵀ ξ).

    Args:
        basis: U `(size, k)`, orthonormal columns.
        gains: g `(k,)`.
        rest: standard deviation off the columns of U, 1 (that of the prior) or 0.
    """

    basis: jax.Array
    gains: jax.Array
    rest: jax.Array

    @full_precision
    def __call__(self, white: jax.Array) -> jax.Array:
        share = self.basis.T @ white
        return self.rest * (white - self.basis @ share) + self.basis @ (self.gains * share)

    @property
    def log_det(self) -> jax.Array:
        """log det of the root where it is of full rank."""
        return jnp.log(self.gains).sum()


@dataclasses.dataclass(frozen=True)
class LaplaceCovariance:
    """The inverse of the full Hessian ∇²J at the analysis, which knows how the model bends; for up to 4096 controls.

    NaN where ∇²J is not positive definite: such an analysis is no minimum, and has no covariance.

    Example:
        >>> method.posterior(batch, LaplaceCovariance()).std
    """

    @full_precision
    def root(self, problem: Problem, control: jax.Array, minimiser: Solver, key: jax.Array) -> Root:
        """(∇²J)^{−½} at w."""
        require(control.size <= LARGEST, f"at most {LARGEST} controls", control.size, "use GaussNewtonHessian(n_krylov=…)")

        def gradient(w: jax.Array) -> jax.Array:
            return jax.grad(lambda w: 0.5 * jnp.square(problem.residual(w)).sum())(w)

        values, vectors = jnp.linalg.eigh(jax.jacfwd(gradient)(control))
        return Root(vectors, 1 / jnp.sqrt(values), jnp.ones((), control.dtype))


@dataclasses.dataclass(frozen=True)
class GaussNewtonHessian:
    """The inverse of JᵀJ = I + (what the observations say), by its leading eigenvectors (Lanczos) or all of them.

    Off the `n_krylov` directions the prior is kept, so a truncated covariance is never too small in law: it errs towards the prior.
    Reference: Tshimanga et al. 2008, *Limited-memory preconditioners, with application to incremental 4DVar*.

    Args:
        n_krylov: Lanczos vectors; None writes JᵀJ out.

    Example:
        >>> method.posterior(batch, GaussNewtonHessian(n_krylov=30)).sample(key, 100)
    """

    n_krylov: int | None = None

    def __post_init__(self) -> None:
        require(self.n_krylov is None or self.n_krylov >= 1, "at least one Lanczos vector", self.n_krylov, "pass more, or None for all")

    @full_precision
    def root(self, problem: Problem, control: jax.Array, minimiser: Solver, key: jax.Array) -> Root:
        """(JᵀJ)^{−½} at w."""
        one = jnp.ones((), control.dtype)
        if self.n_krylov is None or self.n_krylov >= control.size:
            require(control.size <= LARGEST, f"at most {LARGEST} controls, or n_krylov", control.size, "pass n_krylov")
            jacobian = jax.jacfwd(problem.residual)(control)
            values, vectors = jnp.linalg.eigh(jacobian.T @ jacobian)
            return Root(vectors, 1 / jnp.sqrt(values), one)
        _, push = jax.linearize(problem.residual, control)
        pull = jax.linear_transpose(push, control)
        values, vectors = lanczos(lambda v: pull(push(v))[0] - v, jax.random.normal(key, control.shape, control.dtype), self.n_krylov)
        return Root(vectors, 1 / jnp.sqrt(1 + jnp.maximum(values, 0)), one)


@full_precision
def lanczos(matvec: Callable[[jax.Array], jax.Array], start: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Ritz values `(n,)` and orthonormal Ritz vectors `(size, n)` of a symmetric operator, every vector orthogonalised against all before.

    Reference: Golub & Van Loan 2013, *Matrix computations*, section 10.3.
    """

    def step(basis: jax.Array, i: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        product = matvec(basis[i])
        rest = product
        for _ in range(2):  # once more, for what rounding left
            rest = rest - basis.T @ (basis @ rest)
        size = jnp.linalg.norm(rest)
        # an invariant subspace is exhausted: what is left is rounding
        done = size <= 100 * jnp.finfo(start.dtype).eps * jnp.linalg.norm(product)
        following = jnp.where(done, 0, rest / jnp.where(done, 1, size))
        basis = jax.lax.cond(i + 1 < n, lambda b: b.at[i + 1].set(following), lambda b: b, basis)
        return basis, (basis[i] @ product, jnp.where(done, 0, size))

    basis = jnp.zeros((n, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))
    basis, (diagonal, beside) = jax.lax.scan(step, basis, jnp.arange(n))
    values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1))
    return values, basis.T @ vectors


@dataclasses.dataclass(frozen=True)
class EnsembleCovariance:
    """The spread of solutions of perturbed problems, min ½‖r(w) − ε‖² with ε ~ N(0, I): exact for linear models.

    Reference: Oliver, He & Reynolds 1996, *Conditioning permeability fields to pressure data*; Bardsley et al. 2014.

    Args:
        members: solutions.
        inflation: factor of the anomalies.

    Example:
        >>> method.posterior(batch, EnsembleCovariance(members=64), key=key).std
    """

    members: int = 64
    inflation: float = 1.0

    def __post_init__(self) -> None:
        require(self.members >= 2 and self.inflation > 0, "two members or more and a positive inflation", self, "pass such numbers")

    def root(self, problem: Problem, control: jax.Array, minimiser: Solver, key: jax.Array) -> Root:
        """The root of the ensemble's covariance, of rank members − 1."""
        shape = jax.eval_shape(problem.residual, control)

        def member(key: jax.Array) -> jax.Array:
            noise = jax.random.normal(key, shape.shape, shape.dtype)
            return minimiser(lambda w: problem.residual(w) - noise, control).control

        solutions = jax.vmap(member)(jax.random.split(key, self.members))
        anomalies = self.inflation * (solutions - solutions.mean(axis=0)) / math.sqrt(self.members - 1)
        basis, gains, _ = jnp.linalg.svd(anomalies.T, full_matrices=False)
        return Root(basis, gains, jnp.zeros((), control.dtype))


CovarianceStrategy = LaplaceCovariance | GaussNewtonHessian | EnsembleCovariance


class Provenance(NamedTuple):
    """Where a posterior comes from.

    Args:
        method, covariance: names of the classes.
        cost, distance, iterations, status: of the solve, as in `Solve`.
        versions: of this library and of jax.
    """

    method: str
    covariance: str
    cost: jax.Array
    distance: jax.Array
    iterations: jax.Array
    status: jax.Array
    versions: dict[str, str]


class Gaussian:
    """N(μ, R Rᵀ) for each element of a batch, with R a linear map that is never written out unless a density is asked for.

    Args:
        mean: μ `(*batch, *state)`.
        parts: arrays with the leading axes of the batch.
        push: `(parts of one element, ξ (size,)) ↦ R ξ (*state)`; hashable, so that nothing is compiled twice.
        size: of ξ.
        log_evidence: log p(y) by the Laplace approximation `(*batch,)`, exact for linear models; NaN of an ensemble.
        provenance: how it was found.

    Example:
        >>> posterior = method.posterior(batch)
        >>> posterior.mean.shape, posterior.std.shape, posterior.sample(key, 100).shape
        ((32, 3), (32, 3), (32, 100, 3))
    """

    def __init__(
        self, mean: jax.Array, parts: Any, push: Callable[[Any, jax.Array], jax.Array], *, size: int, state_rank: int,
        log_evidence: jax.Array, provenance: Provenance,
    ) -> None:  # fmt: skip
        self.mean, self.log_evidence, self.provenance = mean, log_evidence, provenance
        self.size, self.lead = size, mean.shape[: mean.ndim - state_rank]
        self.state_shape = mean.shape[mean.ndim - state_rank :]
        self._parts, self._push = parts, push

    def _each(self, function: Callable[..., jax.Array], static: tuple[Any, ...] = (), *arrays: jax.Array) -> jax.Array:
        """`function(push, size, *static, parts, mean, …)` of every element, flat in and out."""
        rank = len(self.lead)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[rank:]), (self._parts, self.mean, *arrays))
        out = _map_elements(function, (self._push, self.size, *static), flat)
        return out.reshape(*self.lead, *out.shape[1:])

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """n draws `(*batch, n, *state)`."""
        require(n > 0, "n > 0 draws", n, "pass a positive number")
        return self._each(_draw, (n,), jax.random.split(key, math.prod(self.lead)).reshape(*self.lead))

    def diag(self) -> jax.Array:
        """Variances `(*batch, *state)`."""
        return self._each(_variances)

    @property
    def std(self) -> jax.Array:
        """Standard deviations `(*batch, *state)`."""
        return jnp.sqrt(self.diag())

    def matvec(self, vector: jax.Array) -> jax.Array:
        """Covariance times a vector `(*batch, *state)`."""
        return self._each(_product, (), vector)

    @full_precision
    def covariance(self) -> jax.Array:
        """Covariance of the flat state `(*batch, n, n)`.

        Raises:
            ConfigError: more than 4096 components.
        """
        n = math.prod(self.state_shape)
        require(n <= LARGEST, f"at most {LARGEST} components to write a covariance out", n, "use diag, matvec or sample")
        root = self._each(_columns)
        return root @ jnp.swapaxes(root, -1, -2)

    @full_precision
    def log_prob(self, x: Any) -> jax.Array:
        """log N(x; μ, R Rᵀ) in nats, of states `(*batch, *state)` or `(*batch, n, *state)`.

        Raises:
            ConfigError: more than 4096 components, or a covariance that is not of full rank, as that of a small ensemble.
        """
        n = math.prod(self.state_shape)
        require(n <= LARGEST, f"at most {LARGEST} components for a density", n, "use diag, matvec or sample")
        require(self.size >= n and self.provenance.covariance != "EnsembleCovariance", f"a covariance of full rank {n}",
                f"{self.size} directions", "use LaplaceCovariance or GaussNewtonHessian, of the state that is inferred")  # fmt: skip
        # R Rᵀ = Fᵀ F, without the squares that a product of roots would round away
        factor = jnp.linalg.qr(jnp.swapaxes(self._each(_columns), -1, -2), mode="r")
        draws = jnp.asarray(x).ndim > self.mean.ndim
        mean = jnp.expand_dims(self.mean, len(self.lead)) if draws else self.mean
        departure = (jnp.asarray(x) - mean).reshape(*self.lead, -1, n)
        white = jnp.linalg.solve(jnp.swapaxes(factor, -1, -2), jnp.swapaxes(departure, -1, -2))
        log_det = jnp.log(jnp.abs(jnp.diagonal(factor, axis1=-2, axis2=-1))).sum(axis=-1, keepdims=True)
        value = -0.5 * (jnp.square(white).sum(axis=-2) + n * math.log(2 * math.pi)) - log_det
        return value if draws else value[..., 0]


# what a Gaussian does with one element, by names that the cache of compiled programs knows again


@functools.partial(jax.jit, static_argnums=(0, 1))
def _map_elements(function: Callable[..., jax.Array], static: tuple[Any, ...], flat: Any) -> jax.Array:
    return jax.vmap(functools.partial(function, *static))(*flat)


def _draw(push: Any, size: int, n: int, parts: Any, mean: jax.Array, key: jax.Array) -> jax.Array:
    return mean + jax.vmap(lambda w: push(parts, w))(jax.random.normal(key, (n, size), mean.dtype))


def _variances(push: Any, size: int, parts: Any, mean: jax.Array) -> jax.Array:
    eye = jnp.eye(size, dtype=mean.dtype)
    return jnp.square(map_blocks(jax.vmap(lambda w: push(parts, w)), eye, 64)).sum(axis=0)


def _product(push: Any, size: int, parts: Any, mean: jax.Array, vector: jax.Array) -> jax.Array:
    root = lambda w: push(parts, w)  # noqa: E731
    return root(jax.linear_transpose(root, jnp.zeros(size, mean.dtype))(vector)[0])


def _columns(push: Any, size: int, parts: Any, mean: jax.Array) -> jax.Array:
    """R `(n, size)`."""
    return jax.vmap(lambda w: push(parts, w).reshape(-1), out_axes=1)(jnp.eye(size, dtype=mean.dtype))
