"""Models and reference data that several tests use."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.assimilation import repeat
from vardax_flax.ops.integrate import rk4
from vardax_flax.simulators import Lorenz63, Lorenz96, Lorenz96TwoLevel

DATA = Path(__file__).resolve().parent.parent / "data"


@functools.cache
def load(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


def lorenz63(steps):
    """So many RK4 steps of 0.01 as one."""
    return repeat(lambda x: rk4(Lorenz63().tendency, x, 0.01), steps)


def lorenz96(x):
    """One RK4 step of 0.05."""
    return rk4(Lorenz96().tendency, x, 0.05)


def linear(matrix):
    return lambda x: jnp.asarray(matrix) @ x


def two_level(x):
    """20 RK4 steps of 0.005 of the two-level model."""
    return repeat(lambda x: rk4(Lorenz96TwoLevel().tendency, x, 0.005), 20)(x)


def root_mean_square(error):
    """√ of the mean square over the components of each state, averaged over the times."""
    error = np.asarray(error)
    return np.sqrt(np.square(error).reshape(len(error), -1).mean(axis=1)).mean()


def check_derivatives(function, x, seed=0):
    """Dot-product test to 1e-10; and the rest of the tangent falls with the square of the step, or is rounding."""
    x = jnp.asarray(x)
    rng = np.random.default_rng(seed)
    v = jnp.asarray(rng.normal(size=x.shape))
    value, push = jax.jit(lambda x: jax.linearize(function, x))(x)
    w = jnp.asarray(rng.normal(size=value.shape))
    forward, (backward,) = push(v), jax.linear_transpose(push, x)(w)
    scale = max(jnp.linalg.norm(w) * jnp.linalg.norm(forward), jnp.linalg.norm(backward) * jnp.linalg.norm(v))
    assert scale > 0 and abs(jnp.vdot(w, forward) - jnp.vdot(backward, v)) <= 1e-10 * scale
    sizes = 10.0 ** -np.arange(2, 5)
    moved = jax.jit(jax.vmap(lambda h: function(x + h * v)))(jnp.asarray(sizes))
    rest = np.array([np.linalg.norm(m - value - h * forward) for m, h in zip(moved, sizes, strict=True)])
    if rest.max() > 1e-12 * (1 + np.linalg.norm(value)):  # not linear
        np.testing.assert_allclose(np.diff(np.log10(rest)), -2.0, atol=0.05)
