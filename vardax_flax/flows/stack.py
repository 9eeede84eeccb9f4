"""A deep conditional flow: layers of one family with permutations between them, scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn import Statistic, make_stack, scan_stack


class FlowStack(nnx.Module):
    """z = f_L ∘ P_L ∘ … ∘ f_1 ∘ P_1 (x | c) with permutations P and log |dz/dx| = Σ log |df_l|.

    Every second permutation is a reversal, so that two layers together transform every component; the others are random.

    Args:
        dim: size of x.
        n_layers: number of layers.
        make: builds one layer, `rngs -> module` with `forward` and `inverse`.

    Example:
        >>> flow = FlowStack(2, 6, lambda r: SplineCoupling(2, 16, ..., rngs=r), rngs=nnx.Rngs(0))
        >>> x, log_det = flow.inverse(z, context)
    """

    def __init__(self, dim: int, n_layers: int, make: Callable[[nnx.Rngs], nnx.Module], *, rngs: nnx.Rngs) -> None:
        self.layers = make_stack(lambda r: _Permuted(dim, make, rngs=r), n_layers, rngs)
        reverse = jnp.arange(dim)[::-1]
        keys = jax.random.split(rngs.params(), n_layers)
        orders = [reverse if layer % 2 or dim < 3 else jax.random.permutation(keys[layer], dim) for layer in range(n_layers)]
        self.layers.order[...] = jnp.stack(orders).astype(jnp.int32)

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z `(*batch, dim)` and log |dz/dx| `(*batch,)`."""
        return self._run("forward", x, context)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x `(*batch, dim)` and log |dx/dz| `(*batch,)`."""
        return self._run("inverse", z, context)

    def _run(self, direction: str, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        lead = jnp.broadcast_shapes(x.shape[:-1], context.shape[:-1])
        x = jnp.broadcast_to(x, (*lead, x.shape[-1]))

        def apply(layer: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, log_det = carry
            x, change = getattr(layer, direction)(x, context)
            return x, log_det + change

        return scan_stack(self.layers, apply, (x, jnp.zeros(lead, x.dtype)), reverse=direction == "inverse")


class _Permuted(nnx.Module):
    """One layer behind its permutation."""

    def __init__(self, dim: int, make: Callable[[nnx.Rngs], nnx.Module], *, rngs: nnx.Rngs) -> None:
        self.order = Statistic(jnp.arange(dim, dtype=jnp.int32))
        self.layer: Any = make(rngs)

    def forward(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.layer.forward(jnp.take(x, self.order[...], axis=-1), context)

    def inverse(self, z: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, log_det = self.layer.inverse(z, context)
        return jnp.take(x, jnp.argsort(self.order[...]), axis=-1), log_det
