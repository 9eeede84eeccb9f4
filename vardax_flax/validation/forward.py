"""Does an emulator predict what the physics predicts?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.config import require
from vardax_flax.ops.precision import full_precision
from vardax_flax.validation.result import GateResult, assert_passed


def forward_agreement(
    emulator: Callable[[jax.Array], jax.Array], physics: Callable[[jax.Array], jax.Array], states: Any, *, eps: float = 0.01
) -> GateResult:
    """Compare an emulator F_ψ with the forward model F on held-out states: ‖F_ψ(x) − F(x)‖ / ‖F(x)‖ ≤ ε at every one of them.

    Args:
        emulator: F_ψ, one state `(*state)` ↦ prediction, in JAX.
        physics: F, likewise, of the same shape.
        states: `(events, *state)`, that the emulator was not trained on.
        eps: ε.

    Returns:
        `statistic` is the largest relative error, `bound` ε; `details` holds every `relative_error` `(events,)`, their median, and the
        root-mean-square error of each component of the prediction.

    Raises:
        ConfigError: no states, shapes that differ, or predictions of 0, of which nothing is a percentage.

    Example:
        >>> forward_agreement(lambda x: 1.001 * simulator.predict(x), simulator.predict, states).passed
        True
    """
    states = jnp.asarray(states)
    require(states.ndim >= 1 and len(states) > 0, "states (events, *state)", states.shape, "add the axis of events")
    require(eps > 0, "eps > 0", eps, "pass a positive bound")
    fast, exact = (np.asarray(jax.jit(jax.vmap(full_precision(f)))(states), np.float64) for f in (emulator, physics))
    require(fast.shape == exact.shape, f"predictions of shape {exact.shape}", fast.shape, "predict the same")
    flat = lambda a: a.reshape(len(a), -1)  # noqa: E731
    size = np.linalg.norm(flat(exact), axis=1)
    require(bool((size > 0).all()), "a physics whose predictions are not 0", f"0 at state {int(np.argmin(size))}", "compare other states")
    error = np.linalg.norm(flat(fast - exact), axis=1) / size
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    value, passed = float(error[worst]), bool((error <= eps).all())
    by_component = np.sqrt(np.square(fast - exact).mean(axis=0))
    where = np.unravel_index(int(np.argmax(np.where(np.isnan(by_component), np.inf, by_component))), by_component.shape)
    place = ", ".join(map(str, where))
    text = f"relative error {value:.3g} (state {worst}; largest on average in component [{place}])"
    details = {
        "relative_error": error, "median": float(np.median(error)), "share_beyond": float((~(error <= eps)).mean()),
        "rmse": by_component, "expected": f"a relative error <= {eps:g} at every state", "worst": text,
        "do": "train the emulator longer, or on states like the worst one",
    }  # fmt: skip
    head = "predicts as the physics" if passed else "predicts otherwise than the physics"
    summary = f"{head}: {text}, median {np.median(error):.3g}; bound {eps:g} ({len(error)} states)"
    return GateResult("forward_agreement", passed, value, eps, None, summary, details)


def assert_forward_agreement(
    emulator: Callable[[jax.Array], jax.Array], physics: Callable[[jax.Array], jax.Array], states: Any, *, eps: float = 0.01
) -> GateResult:
    """Raise unless an emulator predicts what the physics predicts; arguments as for `forward_agreement`.

    Raises:
        AssertionError: names the worst state, its relative error, the bound and what to do.

    Example:
        >>> result = assert_forward_agreement(emulator, simulator.predict, states)
    """
    result = forward_agreement(emulator, physics, states, eps=eps)
    assert_passed(result)
    return result
