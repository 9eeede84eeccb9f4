"""Densities, conditionals and divergences of multivariate normals, by Cholesky factors; all broadcast over leading axes.

Symbols: d the dimension of the state, m that of the observation, L a lower Cholesky factor.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike

from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import solve_lower, sum_of_squares

LOG_2PI = math.log(2 * math.pi)


def standard_log_prob(z: jax.Array) -> jax.Array:
    """log N(z; 0, I) = −½ (|z|² + d log 2π), `(*batch, d) → (*batch,)`, in nats.

    Example:
        >>> standard_log_prob(jnp.zeros((10, 2))).shape
        (10,)
    """
    return -0.5 * (sum_of_squares(z) + z.shape[-1] * LOG_2PI)


@partial(jnp.vectorize, signature="(d),(d),(d,d)->()")
def _log_prob(x: jax.Array, mean: jax.Array, scale_tril: jax.Array) -> jax.Array:
    white = solve_lower(scale_tril, x - mean)
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(scale_tril)))
    return standard_log_prob(white) - half_log_det


@full_precision
def log_prob(x: ArrayLike, mean: ArrayLike, scale_tril: ArrayLike) -> jax.Array:
    """Log density of a multivariate normal, in nats.

    log N(x; μ, L Lᵀ) = −½ |L⁻¹(x − μ)|² − Σᵢ log Lᵢᵢ − d/2 log 2π

    Args:
        x: points `(*batch, d)`.
        mean: μ `(*batch, d)`.
        scale_tril: L `(*batch, d, d)`, lower triangular with a positive diagonal.

    Returns:
        `(*batch,)`, the leading axes broadcast against each other.

    Example:
        >>> float(log_prob(jnp.zeros(2), jnp.zeros(2), jnp.eye(2)))
        -1.837877
    """
    return _log_prob(x, mean, scale_tril)


@partial(jnp.vectorize, signature="(d),(d,d),(m,d),(m,m),(m)->(d),(d,d)")
def _condition(
    mean: jax.Array, cov: jax.Array, operator: jax.Array, noise_cov: jax.Array, observation: jax.Array
) -> tuple[jax.Array, jax.Array]:
    chol = jnp.linalg.cholesky(cov)
    noise_chol = jnp.linalg.cholesky(noise_cov)
    # in coordinates that whiten prior and noise the precision is GᵀG + I, whose eigenvalues are at least 1: nothing cancels.
    # Its factor comes from a QR of (G; I) and not from GᵀG, whose condition number is the square: float32 survives precise data
    g = solve_triangular(noise_chol, operator @ chol, lower=True)
    innovation = solve_triangular(noise_chol, observation - operator @ mean, lower=True)
    q, r = jnp.linalg.qr(jnp.concatenate([g, jnp.eye(mean.shape[0], dtype=g.dtype)]))
    factor = solve_triangular(r, chol.T, trans=1)  # its Gram matrix is the posterior covariance
    return mean + factor.T @ (q[: innovation.shape[0]].T @ innovation), factor.T @ factor


@full_precision
def condition(
    mean: ArrayLike, cov: ArrayLike, operator: ArrayLike, noise_cov: ArrayLike, observation: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Posterior of a linear Gaussian model x ~ N(μ, P), y | x ~ N(H x, R).

    P' = L (I + Lᵀ Hᵀ R⁻¹ H L)⁻¹ Lᵀ with P = L Lᵀ, μ' = μ + P' Hᵀ R⁻¹ (y − H μ); positive definite by construction
    (Särkkä 2013, *Bayesian Filtering and Smoothing*, appendix A; Bierman 1977 for the square-root form).

    Args:
        mean: μ `(*batch, d)`.
        cov: P `(*batch, d, d)`, positive definite.
        operator: H `(*batch, m, d)`.
        noise_cov: R `(*batch, m, m)`, positive definite.
        observation: y `(*batch, m)`.

    Returns:
        Posterior mean `(*batch, d)` and covariance `(*batch, d, d)`.

    Example:
        >>> mean, cov = condition(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
        >>> float(mean[0]), float(cov[0, 0])  # 0.5, 0.5
    """
    return _condition(mean, cov, operator, noise_cov, observation)


@partial(jnp.vectorize, signature="(d),(d,d),(d),(d,d)->()")
def _kl_gaussians(mean_p: jax.Array, cov_p: jax.Array, mean_q: jax.Array, cov_q: jax.Array) -> jax.Array:
    chol_q = jnp.linalg.cholesky(cov_q)
    ratio = solve_triangular(chol_q, jnp.linalg.cholesky(cov_p), lower=True)
    shift = solve_triangular(chol_q, mean_q - mean_p, lower=True)
    diagonal = jnp.diagonal(ratio)
    # summed by terms that are each non-negative, instead of trace − d − log det, which cancel when p is close to q
    return 0.5 * (jnp.sum(jnp.tril(ratio, -1) ** 2) + jnp.sum(diagonal**2 - 1 - 2 * jnp.log(diagonal)) + jnp.sum(shift**2))


@full_precision
def kl_gaussians(mean_p: ArrayLike, cov_p: ArrayLike, mean_q: ArrayLike, cov_q: ArrayLike) -> jax.Array:
    """Kullback-Leibler divergence between two multivariate normals, in nats.

    KL(p ‖ q) = ½ [tr(Q⁻¹P) − d + (μ_q − μ_p)ᵀ Q⁻¹ (μ_q − μ_p) + log det Q / det P]

    Args:
        mean_p: μ_p `(*batch, d)`.
        cov_p: P `(*batch, d, d)`, positive definite.
        mean_q: μ_q `(*batch, d)`.
        cov_q: Q `(*batch, d, d)`, positive definite.

    Returns:
        `(*batch,)`.

    Example:
        >>> float(kl_gaussians(jnp.zeros(1), jnp.eye(1), jnp.ones(1), jnp.eye(1)))
        0.5
    """
    return _kl_gaussians(mean_p, cov_p, mean_q, cov_q)
