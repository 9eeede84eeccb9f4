"""Models and reference data that several tests use."""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vardax_flax.assimilation import repeat
from vardax_flax.ops.integrate import rk4
from vardax_flax.simulators import Lorenz63, Lorenz96

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


def root_mean_square(error):
    """√ of the mean square over the components of each state, averaged over the times."""
    error = np.asarray(error)
    return np.sqrt(np.square(error).reshape(len(error), -1).mean(axis=1)).mean()
