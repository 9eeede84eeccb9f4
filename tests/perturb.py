"""Modules whose parameters are noise: layers start as the identity, and a test of the identity cannot fail."""

import jax
import jax.numpy as jnp
from flax import nnx


def perturb(module, scale=0.3, seed=0):
    """The same module, every parameter plus noise; in double precision where that is on."""
    params = nnx.state(module, nnx.Param)
    leaves, structure = jax.tree.flatten(params)
    dtype = jnp.result_type(float)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [leaf.astype(dtype) + scale * jax.random.normal(key, leaf.shape, dtype) for key, leaf in zip(keys, leaves, strict=True)]
    nnx.update(module, jax.tree.unflatten(structure, noisy))
    return module
