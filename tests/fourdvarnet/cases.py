"""Observations and weights that the tests of the learned solver share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.fourdvarnet import ConvLSTMConfig, ConvPriorConfig

SMALL = {"prior": ConvPriorConfig(latent=4), "modulator": ConvLSTMConfig(hidden=4), "n_solver_steps": 3}


def observed(shape, seed=0, rate=0.4, dtype=float):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    mask = (rng.random(shape) < rate).astype(float)
    return Batch(*(jnp.asarray(a, dtype) for a in (np.where(mask > 0, x, 0), mask, x)))


def perturbed(model, size, seed=1):
    """The model with weights away from their start, where the last layers are zero."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    dtype = jnp.result_type(float)
    noisy = jax.tree.map(lambda leaf: leaf.astype(dtype) + size * jax.random.normal(next(keys), leaf.shape, dtype), params)
    return nnx.merge(graphdef, noisy, rest)
