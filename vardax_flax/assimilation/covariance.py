"""Covariance operators: each knows a root in closed form, most its inverse too, so nothing is ever solved for iteratively.

A covariance acts on flat vectors `(size,)`; `jax.vmap` adds axes.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.scipy.linalg import solve_triangular

from vardax_flax.core.config import ConfigError, require
from vardax_flax.ops.precision import full_precision


class Covariance(abc.ABC):
    """Interface of a symmetric positive definite C = S Sᵀ of which a part need only bring S; what it does not override is dense."""

    size: int

    @property
    def white_size(self) -> int:
        """Columns of S: `size`, unless the root is a wide one."""
        return self.size

    @abc.abstractmethod
    def root(self, white: jax.Array) -> jax.Array:
        """S w `(size,)`: of covariance C if w `(white_size,)` is white."""

    @abc.abstractmethod
    def diagonal(self) -> jax.Array:
        """Variances `(size,)`."""

    def whiten(self, vector: jax.Array) -> jax.Array:
        """W v `(size,)` with Wᵀ W = C⁻¹: white if v has covariance C. Where S is square, W = S⁻¹."""
        return self._factored().whiten(vector)

    @property
    def log_det(self) -> jax.Array:
        """log det C."""
        return self._factored().log_det

    def _factored(self) -> _Factored:
        return _Factored(jnp.linalg.cholesky(self.as_matrix()))

    def matvec(self, vector: jax.Array) -> jax.Array:
        """C v."""
        return self.root(self._transpose(self.root, self.white_size, vector))

    def solve(self, vector: jax.Array) -> jax.Array:
        """C⁻¹ v."""
        return self._transpose(self.whiten, self.size, self.whiten(vector))

    def _transpose(self, function: Any, size: int, vector: jax.Array) -> jax.Array:
        return jax.linear_transpose(function, jnp.zeros(size, vector.dtype))(vector)[0]

    def as_matrix(self) -> jax.Array:
        """C, `(size, size)`."""
        return jax.vmap(self.matvec)(jnp.eye(self.size))

    def as_lineax(self) -> lx.FunctionLinearOperator:
        """C as an operator for lineax and optimistix, tagged positive semidefinite."""
        return lx.FunctionLinearOperator(self.matvec, jax.eval_shape(lambda: jnp.zeros(self.size)), lx.positive_semidefinite_tag)

    def whitener(self, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A matrix W with Wᵀ W = C̃⁻¹, C̃ = M C M + (I − M), and log det C̃: exact where only part is observed.

        The rows and columns of what is not observed are those of the identity: they are cut off, not made uncertain.

        Args:
            mask: 1 observed, 0 not, `(size,)`.

        Returns:
            W `(size, size)`, or its diagonal `(size,)` where it has no more.
        """
        masked = _Factored(jnp.linalg.cholesky(self.as_matrix() * mask[:, None] * mask[None, :] + jnp.diag(1 - mask)))
        return masked.inverse, masked.log_det


def _variances(values: Any) -> jax.Array:
    """Variances as an array of real numbers, checked where they are known."""
    array = jnp.asarray(values)
    require(array.ndim == 1, "variances (size,)", array.shape, "pass one for each component")
    if not isinstance(array, jax.core.Tracer):
        good = bool(jnp.isfinite(array).all() & (array > 0).all())
        require(good, "positive, finite variances", float(array.min()), "pass squares of standard deviations")
    return array.astype(jnp.result_type(float, array))


class Diagonal(Covariance):
    """diag(v).

    Args:
        variances: v `(size,)`, positive.

    Raises:
        ConfigError: variances that are not positive and finite.

    Example:
        >>> Diagonal(4 * jnp.ones(3)).root(jnp.ones(3))
        Array([2., 2., 2.], dtype=float32)
    """

    def __init__(self, variances: Any) -> None:
        self.variances = _variances(variances)
        self.size = self.variances.shape[0]

    def root(self, white: jax.Array) -> jax.Array:
        return jnp.sqrt(self.variances) * white

    def whiten(self, vector: jax.Array) -> jax.Array:
        return vector / jnp.sqrt(self.variances)

    @property
    def log_det(self) -> jax.Array:
        return jnp.log(self.variances).sum()

    def diagonal(self) -> jax.Array:
        return self.variances

    def whitener(self, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        variances = jnp.where(mask != 0, self.variances, 1)
        return 1 / jnp.sqrt(variances), jnp.log(variances).sum()


class _Factored(Covariance):
    """L Lᵀ, with L⁻¹ made once, so that no triangle is solved inside an iteration."""

    def __init__(self, factor: jax.Array) -> None:
        self.factor = factor
        self.size = factor.shape[0]
        self.inverse = solve_triangular(factor, jnp.eye(self.size, dtype=factor.dtype), lower=True)

    @full_precision
    def root(self, white: jax.Array) -> jax.Array:
        return self.factor @ white

    @full_precision
    def whiten(self, vector: jax.Array) -> jax.Array:
        return self.inverse @ vector

    @property
    def log_det(self) -> jax.Array:
        return 2 * jnp.log(jnp.diagonal(self.factor)).sum()

    def diagonal(self) -> jax.Array:
        return jnp.square(self.factor).sum(axis=1)


def dense(matrix: Any) -> Covariance:
    """The covariance with this matrix `(size, size)`, by its Cholesky factor.

    Raises:
        ConfigError: it is not square, finite, symmetric and positive definite.

    Example:
        >>> dense([[2.0, 1.0], [1.0, 2.0]]).log_det
        Array(1.0986123, dtype=float32)
    """
    c = np.asarray(matrix, np.float64)
    require(c.ndim == 2 and c.shape[0] == c.shape[1], "a square covariance", c.shape, "pass one row and column for each component")
    require(bool(np.isfinite(c).all()), "a finite covariance", "NaN or infinity", "repair it")
    require(bool(np.allclose(c, c.T, rtol=1e-5, atol=1e-5 * np.abs(c).max())), "a symmetric covariance", "one that is not", "symmetrise it")
    try:
        factor = np.linalg.cholesky(c)
    except np.linalg.LinAlgError as error:
        least = float(np.linalg.eigvalsh(c)[0])
        raise ConfigError(
            f"expected a positive definite covariance, got a smallest eigenvalue of {least:.3g}; do add a small multiple of the identity"
        ) from error
    return _Factored(jnp.asarray(factor, jnp.result_type(float)))


class LowRankPlusDiagonal(Covariance):
    """D + U Uᵀ, by the symmetric root of I + D^{−½} U Uᵀ D^{−½}.

    Args:
        variances: of D, `(size,)`, positive.
        factor: U `(size, rank)`, such as the anomalies of an ensemble.

    Raises:
        ConfigError: variances that are not positive and finite, a factor of other rows.

    Example:
        >>> LowRankPlusDiagonal(jnp.ones(3), jnp.ones((3, 1))).diagonal()
        Array([2., 2., 2.], dtype=float32)
    """

    def __init__(self, variances: Any, factor: Any) -> None:
        self.variances, self.factor = _variances(variances), jnp.asarray(factor)
        self.size = self.variances.shape[0]
        fits = self.factor.ndim == 2 and self.factor.shape[0] == self.size
        require(fits, f"a factor of {self.size} rows", self.factor.shape, "pass one row for each component")
        basis, singular, _ = jnp.linalg.svd(self.factor / jnp.sqrt(self.variances)[:, None], full_matrices=False)
        self.basis, self.gains = basis, jnp.sqrt(1 + jnp.square(singular))

    def root(self, white: jax.Array) -> jax.Array:
        return jnp.sqrt(self.variances) * self._stretch(white, self.gains)

    def whiten(self, vector: jax.Array) -> jax.Array:
        return self._stretch(vector / jnp.sqrt(self.variances), 1 / self.gains)

    @full_precision
    def _stretch(self, vector: jax.Array, gains: jax.Array) -> jax.Array:
        return vector + self.basis @ ((gains - 1) * (self.basis.T @ vector))

    @property
    def log_det(self) -> jax.Array:
        return jnp.log(self.variances).sum() + 2 * jnp.log(self.gains).sum()

    def diagonal(self) -> jax.Array:
        return self.variances + jnp.square(self.factor).sum(axis=1)


class Kronecker(Covariance):
    """A ⊗ B: the covariance of a field on (rows, columns) that correlates separately along each.

    Args:
        rows: A.
        columns: B.

    Example:
        >>> Kronecker(dense(time_covariance), Matern((64, 64), length=5.0))      # time × space
    """

    def __init__(self, rows: Covariance, columns: Covariance) -> None:
        self.rows, self.columns = rows, columns
        self.size = rows.size * columns.size

    def _apply(self, one: Any, other: Any, vector: jax.Array) -> jax.Array:
        table = vector.reshape(self.rows.size, self.columns.size)
        return jax.vmap(one, in_axes=1, out_axes=1)(jax.vmap(other)(table)).reshape(-1)

    def root(self, white: jax.Array) -> jax.Array:
        return self._apply(self.rows.root, self.columns.root, white)

    def whiten(self, vector: jax.Array) -> jax.Array:
        return self._apply(self.rows.whiten, self.columns.whiten, vector)

    @property
    def log_det(self) -> jax.Array:
        return self.columns.size * self.rows.log_det + self.rows.size * self.columns.log_det

    def diagonal(self) -> jax.Array:
        return jnp.outer(self.rows.diagonal(), self.columns.diagonal()).reshape(-1)


class Matern(Covariance):
    """A stationary field on a periodic grid: F⁻¹ diag(S) F with S(k) ∝ (1 + (ℓ|k|)²)^{−(ν + d/2)}, k = 2π × cycles per cell.

    Reference: Whittle 1954, *On stationary processes in the plane*. The spectrum is scaled so that every point has variance sd².

    Args:
        grid: sizes of the d axes.
        length: ℓ in cells.
        sd: standard deviation at a point.
        smoothness: ν.

    Raises:
        ConfigError: a length, sd or smoothness that is not positive.

    Example:
        >>> field = Matern((64, 64), length=5.0).root(jax.random.normal(key, (4096,)))
    """

    def __init__(self, grid: tuple[int, ...], length: float, sd: float = 1.0, smoothness: float = 1.5) -> None:
        scales = (length, sd, smoothness)
        require(all(0 < scale < math.inf for scale in scales), "positive length, sd and smoothness", scales, "pass positive numbers")
        self.grid, self.size = tuple(grid), math.prod(grid)
        frequencies = np.meshgrid(*(2 * np.pi * np.fft.fftfreq(n) for n in self.grid), indexing="ij")
        spectrum = (1 + length**2 * sum(k**2 for k in frequencies)) ** -(smoothness + len(self.grid) / 2)
        self.spectrum = sd**2 * spectrum / spectrum.mean()

    def _filter(self, vector: jax.Array, gain: np.ndarray) -> jax.Array:
        field = vector.reshape(self.grid)
        return jnp.fft.ifftn(jnp.fft.fftn(field) * gain.astype(vector.dtype)).real.reshape(-1)

    def root(self, white: jax.Array) -> jax.Array:
        return self._filter(white, np.sqrt(self.spectrum))

    def whiten(self, vector: jax.Array) -> jax.Array:
        return self._filter(vector, 1 / np.sqrt(self.spectrum))

    @property
    def log_det(self) -> jax.Array:
        return jnp.asarray(np.log(self.spectrum).sum(), jnp.result_type(float))

    def diagonal(self) -> jax.Array:
        return jnp.full(self.size, self.spectrum.mean(), jnp.result_type(float))


class Blocks(Covariance):
    """A covariance of parts that err independently, flat and one after the other: the instruments of a `Fusion`, or two kinds of variables.

    Args:
        parts: a covariance for each.

    Example:
        >>> Blocks([Diagonal(jnp.ones(3)), dense([[2.0, 1.0], [1.0, 2.0]])]).size
        5
    """

    def __init__(self, parts: Sequence[Covariance]) -> None:
        require(len(parts) > 0, "at least one part", 0, "pass its covariance")
        self.parts = tuple(parts)
        self.size = sum(part.size for part in self.parts)

    @property
    def white_size(self) -> int:
        return sum(part.white_size for part in self.parts)

    def root(self, white: jax.Array) -> jax.Array:
        cuts = np.cumsum([part.white_size for part in self.parts])[:-1].tolist()
        return jnp.concatenate([part.root(w) for part, w in zip(self.parts, jnp.split(white, cuts), strict=True)])

    def whiten(self, vector: jax.Array) -> jax.Array:
        return jnp.concatenate([part.whiten(v) for part, v in zip(self.parts, self._cut(vector), strict=True)])

    def _cut(self, vector: jax.Array) -> list[jax.Array]:
        return jnp.split(vector, np.cumsum([part.size for part in self.parts])[:-1].tolist())

    @property
    def log_det(self) -> jax.Array:
        return jnp.stack([part.log_det for part in self.parts]).sum()

    def diagonal(self) -> jax.Array:
        return jnp.concatenate([part.diagonal() for part in self.parts])


def as_covariance(value: Any, size: int, name: str) -> Covariance:
    """What a user may pass for B, Q or R as a covariance: a `Covariance`, a variance, variances, a matrix, or an operator of lineax.

    Args:
        value: scalar, `(size,)`, `(size, size)`, a `Covariance`, or a `lineax.AbstractLinearOperator` tagged positive semidefinite.
        size: of the vectors it acts on.
        name: for the error.

    Raises:
        ConfigError: another size, not positive definite, or an operator without the tag.

    Example:
        >>> as_covariance(4.0, 3, "R").diagonal()
        Array([4., 4., 4.], dtype=float32)
    """
    if isinstance(value, lx.AbstractLinearOperator):
        tagged = lx.is_positive_semidefinite(value) or lx.is_diagonal(value)  # whose variances are looked at
        require(tagged, f"{name} tagged positive semidefinite", "an operator without that tag", "pass lineax.positive_semidefinite_tag")
        value = lx.diagonal(value) if lx.is_diagonal(value) else value.as_matrix()
    if not isinstance(value, Covariance):
        array = np.asarray(value, np.float64)
        require(array.ndim <= 2, f"{name} as a variance, variances or a matrix", array.shape, "pass one of them")
        if array.ndim == 2:
            value = dense(array)
        else:
            good = bool(np.isfinite(array).all() and (array > 0).all())
            require(good, f"{name} of positive, finite variances", float(array.min()), "pass variances, which are squares")
            array = np.full(size, float(array)) if array.ndim == 0 else array
            value = Diagonal(jnp.asarray(array, jnp.result_type(float)))
    require(value.size == size, f"{name} of size {size}", value.size, "pass the covariance of that many components")
    return value
