"""Scores of an ensemble against the truth or against observations."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.config import require
from vardax_flax.validation.ranks import randomised_ranks
from vardax_flax.validation.result import GateResult


def _members_last(samples: Any, truth: Any, axis: int) -> tuple[jax.Array, jax.Array]:
    samples, truth = jnp.moveaxis(jnp.asarray(samples), axis, -1), jnp.asarray(truth)
    require(samples.shape[:-1] == truth.shape, f"truth of shape {samples.shape[:-1]}", truth.shape, f"check it, or axis={axis}")
    require(samples.shape[-1] >= 2, "at least 2 members", samples.shape[-1], "draw more")
    return samples, truth


def crps(samples: Any, truth: Any, *, axis: int = 1) -> jax.Array:
    """Fair continuous ranked probability score, unbiased in the number of members (Ferro 2014).

    CRPS = mean_i |x_i - y| - Σ_{i<j} |x_i - x_j| / (m (m - 1)), the double sum as Σ_i (2i - m - 1) x_(i) of the sorted members.

    Args:
        samples: `(batch, m, *state)`, or with the members on another `axis`.
        truth: `(batch, *state)`, in the same units.
        axis: of the members.

    Returns:
        of the shape and in the units of `truth`; lower is better.

    Raises:
        ConfigError: shapes that do not match, or a single member.

    Example:
        >>> crps(jnp.array([[0.0, 1.0]]), jnp.array([0.5]))
        Array([0.], dtype=float32)
    """
    members, truth = _members_last(samples, truth, axis)
    m = members.shape[-1]
    # sorted about the truth, so that a large common offset costs no digits
    deviation = jnp.sort(members - truth[..., None], axis=-1)
    weights = 2.0 * jnp.arange(1, m + 1) - m - 1
    return jnp.abs(deviation).mean(axis=-1) - (deviation * weights).sum(axis=-1) / (m * (m - 1))


def rmse(samples: Any, truth: Any, *, axis: int = 1) -> jax.Array:
    """Root mean square error of the ensemble mean, √ mean (x̄ - y)², over all elements.

    Args:
        samples: `(batch, m, *state)`, or with the members on another `axis`.
        truth: `(batch, *state)`.
        axis: of the members.

    Raises:
        ConfigError: shapes that do not match, or a single member.

    Example:
        >>> rmse(jnp.array([[0.0, 2.0]]), jnp.array([1.0]))
        Array(0., dtype=float32)
    """
    members, truth = _members_last(samples, truth, axis)
    return jnp.sqrt(jnp.mean((members.mean(axis=-1) - truth) ** 2))


def spread_skill(samples: Any, truth: Any, *, axis: int = 1, observation_variance: Any = 0.0) -> jax.Array:
    """Spread–skill ratio √((m + 1)/m · mean s² + R) / RMSE of the mean; 1 for a reliable ensemble (Fortin et al. 2014).

    s² has m - 1 in its denominator, and variances are averaged before the root.

    Args:
        samples: `(batch, m, *state)`, or with the members on another `axis`.
        truth: `(batch, *state)`, or observations of it.
        axis: of the members.
        observation_variance: R, if `truth` is an observation with error; scalar or broadcastable to `truth`.

    Raises:
        ConfigError: shapes that do not match, or a single member.

    Example:
        >>> spread_skill(jax.random.normal(key, (10000, 11))[:, :10], truth)  # near 1 for exchangeable members
    """
    members, truth = _members_last(samples, truth, axis)
    m = members.shape[-1]
    variance = (m + 1) / m * jnp.mean(members.var(axis=-1, ddof=1)) + jnp.mean(jnp.asarray(observation_variance))
    return jnp.sqrt(variance) / jnp.sqrt(jnp.mean((members.mean(axis=-1) - truth) ** 2))


def ensemble_scores(samples: Any, truth: Any, *, key: jax.Array, axis: int = 1, observation_variance: Any = 0.0) -> GateResult:
    """CRPS, RMSE, spread–skill ratio and rank histogram in one result; a metric without bound, to be read beside the oracle's.

    Args:
        samples: `(batch, m, *state)`, or with the members on another `axis`.
        truth: `(batch, *state)`, or observations of it; then the histogram is of members without observation error.
        key: breaks ties of the ranks.
        axis: of the members.
        observation_variance: R, if `truth` is an observation with error.

    Returns:
        `statistic` is the mean CRPS; `passed` is False if a member is not finite, else None.

    Raises:
        ConfigError: shapes that do not match, or a single member.

    Example:
        >>> ensemble_scores(model.sample(batch, key, 100), batch.target, key=key).summary
        'CRPS 0.31, RMSE 0.55, spread–skill 0.98 (m=100)'
    """
    members, target = _members_last(samples, truth, axis)
    m = members.shape[-1]
    n_bad = int((~jnp.isfinite(members)).sum())
    if n_bad:
        worst = f"{n_bad} non-finite values among the members"
        failure = {"worst": worst, "do": "find out why the model draws them; none is ever dropped", "expected": "finite members"}
        return GateResult("ensemble", False, math.nan, None, None, f"failed: {worst}", failure)
    score = float(crps(samples, truth, axis=axis).mean())
    error = float(rmse(samples, truth, axis=axis))
    ratio = float(spread_skill(samples, truth, axis=axis, observation_variance=observation_variance))
    histogram = np.bincount(np.asarray(randomised_ranks(members, target, key)).ravel(), minlength=m + 1)
    details = {"crps": score, "rmse": error, "spread_skill": ratio, "rank_histogram": histogram, "n_members": m}
    return GateResult("ensemble", None, score, None, None, f"CRPS {score:.3g}, RMSE {error:.3g}, spread–skill {ratio:.3g} (m={m})", details)
