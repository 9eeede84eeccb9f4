"""The linear Gaussian model: the one simulator whose posterior is known in closed form, whatever is missing."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, require
from vardax_flax.core.interfaces import Conjugate, ControlVariable, Observing, Physics
from vardax_flax.ops import gaussian
from vardax_flax.ops.small import cholesky, solve_lower
from vardax_flax.simulators.observe import check_missing_rate, lose

Vector = tuple[float, ...]
Matrix = tuple[tuple[float, ...], ...]


class _Arrays(NamedTuple):
    """The fields as float64 NumPy arrays, with the Cholesky factors of both covariances."""

    mean: Any
    cov: Any
    chol: Any
    operator: Any
    noise_cov: Any
    noise_chol: Any


def _array(name: str, value: Any, rank: int) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"expected `{name}` as {rank} levels of numbers in rows of equal length, got {value!r}; do repair it") from error
    require(array.ndim == rank and array.size > 0, f"`{name}` with {rank} axes, none of them empty", f"shape {array.shape}", "reshape it")
    require(bool(np.isfinite(array).all()), f"finite numbers in `{name}`", value, "repair it")
    return array


def _cholesky(name: str, cov: np.ndarray, size: int) -> np.ndarray:
    require(cov.shape == (size, size), f"`{name}` of shape {(size, size)}", cov.shape, "match the sizes of the other fields")
    symmetric = np.allclose(cov, cov.T, rtol=1e-6, atol=1e-8 * float(np.abs(cov).max()))
    require(symmetric, f"a symmetric `{name}`", "an asymmetric one", f"pass ({name} + {name}.T) / 2")
    try:
        return np.linalg.cholesky(cov)
    except np.linalg.LinAlgError as error:
        raise ConfigError(f"expected a positive definite `{name}`, got a singular or indefinite one; do add to its diagonal") from error


@dataclasses.dataclass(frozen=True)
class LinearGaussian(Conjugate, Physics, Observing, ControlVariable):
    """Linear observation of a Gaussian state with Gaussian noise, values missing at random.

    x ~ N(μ, P), y | x ~ N(H x, R), each yᵢ observed with probability 1 − missing_rate. With M the diagonal matrix of the mask the
    posterior is that of H̃ = M H and R̃ = M R M + (I − M), exact for correlated noise too: a missing value becomes an independent
    one that the state does not reach (Särkkä 2013, *Bayesian Filtering and Smoothing*, appendix A).

    Args:
        prior_mean: μ, d numbers.
        prior_cov: P, d × d, positive definite.
        operator: H, m × d.
        noise_cov: R, m × m, positive definite; may be correlated.
        missing_rate: probability in [0, 1) that a value is not observed.

    Raises:
        ConfigError: shapes that do not fit, a covariance that is not symmetric positive definite, a rate outside [0, 1).

    Example:
        >>> simulator = LinearGaussian.random(state_dim=3, obs_dim=2)
        >>> mean, cov = simulator.posterior(simulator.sample(jax.random.key(0)))
    """

    kind: ClassVar[str] = "linear_gaussian"

    prior_mean: Vector
    prior_cov: Matrix
    operator: Matrix
    noise_cov: Matrix
    missing_rate: float = 0.0

    def __post_init__(self) -> None:
        check_missing_rate(self.missing_rate)
        self._arrays  # noqa: B018 - computed, and by that validated, now and outside any trace

    @functools.cached_property
    def _arrays(self) -> _Arrays:
        mean = _array("prior_mean", self.prior_mean, 1)
        operator = _array("operator", self.operator, 2)
        cov, noise_cov = _array("prior_cov", self.prior_cov, 2), _array("noise_cov", self.noise_cov, 2)
        require(operator.shape[1] == mean.size, f"`operator` with {mean.size} columns", operator.shape[1], "match the size of prior_mean")
        chol, noise_chol = _cholesky("prior_cov", cov, mean.size), _cholesky("noise_cov", noise_cov, operator.shape[0])
        return _Arrays(mean, cov, chol, operator, noise_cov, noise_chol)

    @property
    def _constants(self) -> _Arrays:
        # a traced constant is remembered by the identity of its NumPy array: one object must not serve two precisions
        return _Arrays(*(jnp.asarray(a.astype(jnp.result_type(float), copy=False)) for a in self._arrays))

    @classmethod
    def from_arrays(cls, prior_mean: Any, prior_cov: Any, operator: Any, noise_cov: Any, missing_rate: float = 0.0) -> LinearGaussian:
        """The same from arrays.

        Args:
            prior_mean: μ `(d,)`.
            prior_cov: P `(d, d)`.
            operator: H `(m, d)`.
            noise_cov: R `(m, m)`.
            missing_rate: probability in [0, 1) that a value is not observed.

        Raises:
            ConfigError: as the class.

        Example:
            >>> simulator = LinearGaussian.from_arrays(np.zeros(2), np.eye(2), np.eye(2), 0.1 * np.eye(2))
        """
        vector: Any = tuple(_array("prior_mean", prior_mean, 1).tolist())
        named = {"prior_cov": prior_cov, "operator": operator, "noise_cov": noise_cov}
        matrices: dict[str, Any] = {name: tuple(map(tuple, _array(name, value, 2).tolist())) for name, value in named.items()}
        return cls(prior_mean=vector, missing_rate=missing_rate, **matrices)

    @classmethod
    def random(cls, state_dim: int, obs_dim: int, seed: int = 0, noise_std: float = 0.5, missing_rate: float = 0.0) -> LinearGaussian:
        """A reproducible random instance: correlated prior of unit variances, dense operator with rows of length about 1, white noise.

        Args:
            state_dim: d.
            obs_dim: m.
            seed: of the matrices.
            noise_std: standard deviation of the noise.
            missing_rate: probability in [0, 1) that a value is not observed.

        Raises:
            ConfigError: a size below 1, or as the class.

        Example:
            >>> LinearGaussian.random(3, 2).spec.input.shape
            (2,)
        """
        require(min(state_dim, obs_dim) >= 1, "state_dim and obs_dim >= 1", (state_dim, obs_dim), "pass positive sizes")
        require(0 < noise_std < math.inf, "noise_std > 0", noise_std, "pass a positive standard deviation")
        rng = np.random.default_rng(seed)
        root = rng.standard_normal((state_dim, 2 * state_dim))
        cov = root @ root.T
        scale = np.sqrt(np.diag(cov))
        operator = rng.standard_normal((obs_dim, state_dim)) / math.sqrt(state_dim)
        noise_cov = noise_std**2 * np.eye(obs_dim)
        return cls.from_arrays(rng.standard_normal(state_dim), cov / np.outer(scale, scale), operator, noise_cov, missing_rate)

    def sample(self, key: jax.Array) -> Batch:
        c = self._constants
        key_state, key_noise, key_mask = jax.random.split(key, 3)
        x = c.mean + c.chol @ jax.random.normal(key_state, c.mean.shape, c.mean.dtype)
        observed, mask = self._observe(x, key_noise, key_mask)
        return Batch(input=observed, mask=mask, target=x)

    def observe(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._observe(x, *jax.random.split(key))

    def _observe(self, x: jax.Array, key_noise: jax.Array, key_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        c = self._constants
        noise = c.noise_chol @ jax.random.normal(key_noise, c.operator.shape[:1], c.mean.dtype)
        return lose(key_mask, c.operator @ x + noise, self.missing_rate)

    def predict(self, x: jax.Array) -> jax.Array:
        """H x, shape `(m,)`."""
        return self._constants.operator @ x

    @property
    def control_shape(self) -> tuple[int, ...]:
        """`(d,)`."""
        return (len(self.prior_mean),)

    def state(self, w: jax.Array, element: Batch) -> jax.Array:
        c = self._constants
        return c.mean + c.chol @ w

    def misfit(self, w: jax.Array, element: Batch) -> jax.Array:
        noise_cov, residual = self._masked(element, self.predict(self.state(w, element)))
        return -solve_lower(cholesky(noise_cov), residual)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        c = self._constants
        return gaussian.log_prob(x, c.mean, c.chol)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        """log p of the observed values: the marginal of N(H x, R) over the missing ones."""
        noise_cov, residual = self._masked(element, self.predict(x))
        log_prob = gaussian.log_prob(residual, jnp.zeros_like(residual), cholesky(noise_cov))
        # a missing value entered as N(0; 0, 1): take its constant out again
        return log_prob + 0.5 * gaussian.LOG_2PI * jnp.sum(1 - element.mask)

    def posterior(self, element: Batch) -> tuple[jax.Array, jax.Array]:
        """Mean `(d,)` and covariance `(d, d)` of p(x | y), exact for any mask."""
        c = self._constants
        noise_cov, innovation = self._masked(element, c.operator @ c.mean)
        shift, cov = gaussian.condition(jnp.zeros_like(c.mean), c.cov, element.mask[:, None] * c.operator, noise_cov, innovation)
        return c.mean + shift, cov

    def _masked(self, element: Batch, clean: jax.Array) -> tuple[jax.Array, jax.Array]:
        """R̃ = M R M + (I − M), and the residual y − h with 0 where not observed."""
        mask = element.mask
        noise_cov = mask[:, None] * self._constants.noise_cov * mask + jnp.diag(1 - mask)
        return noise_cov, jnp.where(mask > 0, element.input - clean, 0)
