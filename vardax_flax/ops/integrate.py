"""Explicit Runge-Kutta integration of autonomous systems dx/dt = f(x)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from vardax_flax.core.config import require

State = TypeVar("State")


def rk4(tendency: Callable[[State], State], x: State, dt: Any) -> State:
    """One classical fourth-order Runge-Kutta step.

    x' = x + dt/6 (k₁ + 2 k₂ + 2 k₃ + k₄), k₁ = f(x), k₂ = f(x + dt/2 k₁), k₃ = f(x + dt/2 k₂), k₄ = f(x + dt k₃)
    (Hairer, Nørsett, Wanner 1993, *Solving Ordinary Differential Equations I*, II.1).

    Args:
        tendency: f, maps a state to its time derivative, same shape.
        x: state, any shape; a JAX or a NumPy array.
        dt: step, in the unit of time of the tendency.

    Example:
        >>> float(rk4(lambda x: -x, jnp.ones(()), 0.1))
        0.9048375
    """
    value: Any = x
    f: Callable[[Any], Any] = tendency
    k1 = f(value)
    k2 = f(value + dt / 2 * k1)
    k3 = f(value + dt / 2 * k2)
    k4 = f(value + dt * k3)
    return value + dt / 6 * (k1 + 2 * (k2 + k3) + k4)


def rk4_trajectory(
    tendency: Callable[[jax.Array], jax.Array], x0: jax.Array, dt: float | jax.Array, steps: int, save_every: int = 1
) -> jax.Array:
    """States of an RK4 integration, the initial one included: x₀, x_s, x_2s, …, x_steps with s = `save_every`.

    Differentiable in `x0` and in whatever the tendency closes over.

    Args:
        tendency: f, maps a state to its time derivative.
        x0: initial state `(*state,)`.
        dt: step, in the unit of time of the tendency.
        steps: number of RK4 steps, a multiple of `save_every`.
        save_every: steps between two saved states.

    Returns:
        `(steps // save_every + 1, *state)`.

    Raises:
        ConfigError: `steps` is negative or no multiple of `save_every`.

    Example:
        >>> rk4_trajectory(lambda x: -x, jnp.ones(3), 0.1, steps=10, save_every=5).shape
        (3, 3)
    """
    require(save_every >= 1, "save_every >= 1", save_every, "save at least every step")
    require(steps >= 0 and steps % save_every == 0, f"steps as a multiple of save_every = {save_every}", steps, "change one of them")

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return rk4(tendency, x, dt), None

    def saved(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        x, _ = jax.lax.scan(step, x, None, length=save_every)
        return x, x

    _, states = jax.lax.scan(saved, x0, None, length=steps // save_every)
    return jnp.concatenate([x0[None], states])
