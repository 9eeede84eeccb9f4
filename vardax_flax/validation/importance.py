"""Are draws of q(x | y) good enough to be reweighted to the exact posterior? The tail of the importance ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import LogJoint
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.psis import k_limit, psis
from vardax_flax.validation.result import GateResult, assert_passed


def importance_quality(
    model: Any, simulator: LogJoint, batch: Batch, *, key: jax.Array, n_samples: int = 1000, share: float = 0.05
) -> GateResult:
    """Test how heavy the tail of p(x) p(y | x) / q(x | y) is over draws of q, by Pareto smoothing.

    Passes if k̂ is at most min(1 − 1 / log₁₀ S, 0.7) for all but a share of the observations (`ops/psis.py`). It sees what q leaves out
    where draws of q come near it; a mode that no draw visits stays unseen.

    Args:
        model: a `Posterior` with a density.
        simulator: with its log densities.
        batch: observations `(events, …)`.
        key: of the draws.
        n_samples: S, draws for each observation.
        share: of the observations that may exceed the limit.

    Raises:
        ConfigError: sizes too small.

    Example:
        >>> assert_importance_quality(importance_quality(posterior, simulator, batch, key=jax.random.key(0)))
    """
    batch = batch._replace(target=None)
    draws = jnp.asarray(model.sample(batch, key, n_samples))
    joint = log_joint(simulator)

    @full_precision
    def log_ratio(x: jax.Array, element: Batch) -> jax.Array:
        return joint(x, element) - model.log_prob(x, element)

    return importance_from_log_ratios(jax.jit(jax.vmap(jax.vmap(log_ratio, (0, None))))(draws, batch), share=share)


def log_joint(simulator: LogJoint) -> Callable[[jax.Array, Batch], jax.Array]:
    """x, element ↦ log p(x) + log p(y | x), −∞ outside the prior's support, where the likelihood may be NaN.

    Example:
        >>> log_joint(simulator)(x, element).shape
        ()
    """

    @full_precision
    def density(x: jax.Array, element: Batch) -> jax.Array:
        prior = simulator.log_prior(x, element)
        return jnp.where(jnp.isneginf(prior), prior, prior + simulator.log_likelihood(x, element))

    return density


class Tails(NamedTuple):
    """k̂ and effective sample sizes `(events,)`, the limit of k̂, and which events have ratios without a verdict."""

    shape: np.ndarray
    ess: np.ndarray
    limit: float
    broken: np.ndarray


def tail_shapes(log_ratios: Any) -> Tails:
    """k̂ of each row of `(events, S)`; infinite where a ratio is NaN or +∞, or where all are −∞."""
    ratios = np.asarray(log_ratios, np.float64)
    require(ratios.ndim == 2 and ratios.shape[1] >= 100 and len(ratios) > 0, "ratios (events, S >= 100)", ratios.shape, "draw more")
    broken = np.isnan(ratios).any(axis=1) | (ratios == np.inf).any(axis=1) | (ratios == -np.inf).all(axis=1)
    whole = np.where(broken[:, None], 0.0, ratios)
    log_weights, k_hat = psis(jnp.asarray(whole - whole.max(axis=1, keepdims=True), jnp.result_type(float)))
    shape = np.where(broken, np.inf, np.asarray(k_hat, np.float64))
    ess = np.where(broken, 0.0, 1 / np.exp(2 * np.asarray(log_weights, np.float64)).sum(axis=1))
    return Tails(shape, ess, k_limit(ratios.shape[1]), broken)


def importance_from_log_ratios(log_ratios: Any, *, share: float = 0.05) -> GateResult:
    """The verdict on log importance ratios already computed.

    Args:
        log_ratios: log p(x) + log p(y | x) − log q(x | y) of draws of q `(events, S)`, each event up to a constant; −∞ where p is 0. An
            event with NaN or +∞, or without any weight, fails.
        share: of the events that may exceed the limit.

    Returns:
        `statistic` is the k̂ that all but the share do not exceed, `bound` the limit; `details` holds k̂ and effective sample sizes.

    Raises:
        ConfigError: fewer than 100 draws, or a `share` outside [0, 1).

    Example:
        >>> importance_from_log_ratios(np.zeros((8, 1000))).passed
        True
    """
    require(0 <= share < 1, "0 <= share < 1", share, "pass such a share")
    tails = tail_shapes(log_ratios)
    shape, ess, limit, broken = tails.shape, tails.ess, tails.limit, tails.broken
    n_events, n_samples = np.shape(log_ratios)
    value = float(np.quantile(shape, 1 - share, method="inverted_cdf"))
    passed, worst = bool(value <= limit), int(np.argmax(shape))
    text = f"k̂ = {value:.2f} at the {1 - share:.0%} quantile over events (worst event {worst}: {shape[worst]:.2f}"
    text += ", ratios that are not finite)" if broken[worst] else f", effective sample size {ess[worst]:.0f} of {n_samples})"
    details = {
        "shape": shape, "ess": ess, "n_samples": n_samples, "share_beyond": float((shape > limit).mean()), "n_broken": int(broken.sum()),
        "expected": f"k̂ <= {limit:.2f} for all but {share:.0%} of the events", "worst": text,
        "do": "widen the posterior or give it heavier tails; do not reweight its draws",
    }  # fmt: skip
    head = "draws can be reweighted" if passed else "draws cannot be reweighted"
    summary = f"{head}: {text}; bound {limit:.2f}; median effective sample size {np.median(ess):.0f} of {n_samples} ({n_events} events)"
    return GateResult("importance", passed, value, limit, None, summary, details)


def assert_importance_quality(result: GateResult) -> None:
    """Raise unless the importance ratios have a light enough tail.

    Raises:
        AssertionError: names the worst event, its k̂, the bound and what to do.

    Example:
        >>> assert_importance_quality(importance_from_log_ratios(log_ratios))
    """
    assert_passed(result)
