"""Networks that multiply in bfloat16 while they are trained; everything around the products stays in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.interfaces import Estimator


def _multiply(left: jax.Array, right: jax.Array, *args: Any, **options: Any) -> jax.Array:
    return jax.lax.dot_general(left.astype(jnp.bfloat16), right.astype(jnp.bfloat16), *args, **options).astype(left.dtype)


def structure_in_bfloat16(estimator: Estimator) -> nnx.GraphDef:
    """The static structure of an estimator whose linear layers, of which all networks here are made, multiply in bfloat16, both ways.

    Half the bytes and the fast units of an accelerator, for numbers of 8 bits (Micikevicius et al. 2018, *Mixed precision training*,
    without its scaling of the loss, since bfloat16 has the range of float32). Weights, activations between layers, and with them
    log-determinants, splines, solvers and the loss, stay in float32; so does every answer, as the estimator itself is left as it was.

    Example:
        >>> model = nnx.merge(structure_in_bfloat16(posterior), nnx.state(posterior))
    """
    copy = nnx.clone(estimator)
    for _, module in nnx.iter_modules(copy):
        if hasattr(module, "dot_general"):
            module.dot_general = _multiply
    return nnx.split(copy)[0]
