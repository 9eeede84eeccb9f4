"""Networks that multiply in bfloat16 while they are trained; everything around the products stays in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.interfaces import Estimator


def _rounded(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def multiply(left: jax.Array, right: jax.Array, *args: Any, **options: Any) -> jax.Array:
        return product(left.astype(jnp.bfloat16), right.astype(jnp.bfloat16), *args, **options).astype(left.dtype)

    return multiply


# one object each: they become part of the key under which compiled code is kept
_DOT, _CONVOLVE = _rounded(jax.lax.dot_general), _rounded(jax.lax.conv_general_dilated)


def structure_in_bfloat16(estimator: Estimator) -> nnx.GraphDef:
    """The static structure of an estimator whose linear layers and convolutions multiply, forwards and backwards, in bfloat16.

    Half the bytes and the fast units of an accelerator, for numbers of 8 bits (Micikevicius et al. 2018, *Mixed precision training*,
    without its scaling of the loss, since bfloat16 has the range of float32). Weights, activations between layers, and with them
    log-determinants, splines, solvers and the loss, stay in float32; so does every answer, as the estimator itself is left as it was.

    Example:
        >>> model = nnx.merge(structure_in_bfloat16(posterior), nnx.state(posterior))
    """
    copy = nnx.clone(estimator)
    for _, module in nnx.iter_modules(copy):
        if hasattr(module, "dot_general"):
            module.dot_general = _DOT
            module.__dict__["product_dtype"] = jnp.bfloat16  # of those who take the kernel and multiply themselves
        if hasattr(module, "conv_general_dilated"):
            module.conv_general_dilated = _CONVOLVE
    return nnx.split(copy)[0]
