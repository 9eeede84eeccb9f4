"""Modules whose parameters are noise: layers start as the identity, and a test of the identity cannot fail."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def noise(*shape, seed=0):
    """Standard normal numbers by NumPy (nothing is compiled), in double precision where that is on."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.result_type(float))


def perturb(module, scale=0.3, seed=0):
    """The same module, every parameter plus noise; in double precision where that is on."""
    leaves, structure = jax.tree.flatten(nnx.state(module, nnx.Param))
    rng = np.random.default_rng(seed)
    noisy = [jnp.asarray(np.asarray(leaf) + scale * rng.standard_normal(leaf.shape), jnp.result_type(float)) for leaf in leaves]
    nnx.update(module, jax.tree.unflatten(structure, noisy))
    return module
