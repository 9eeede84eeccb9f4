"""Recurrent networks as one scan."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.nn.stack import make_stack


class GRUCell(nnx.Module):
    """h ← (1 − z) n + z h with gates z, r and candidate n, of which the part of the input is given, for all times at once."""

    def __init__(self, in_features: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.from_input = nnx.Linear(in_features, 3 * width, rngs=rngs)
        self.from_state = nnx.Linear(width, 3 * width, kernel_init=nnx.initializers.orthogonal(), rngs=rngs)

    def __call__(self, h: jax.Array, drive: jax.Array) -> jax.Array:
        x_z, x_r, x_n = jnp.split(drive, 3, axis=-1)
        h_z, h_r, h_n = jnp.split(self.from_state(h), 3, axis=-1)
        keep = nnx.sigmoid(x_z + h_z)
        return (1 - keep) * jnp.tanh(x_n + nnx.sigmoid(x_r + h_r) * h_n) + keep * h


class BidirectionalGRU(nnx.Module):
    """A series read forwards and backwards at once, `(*batch, time, in) → (*batch, 4 width)`: last and mean state of both directions.

    Reference: Cho et al. 2014, *Learning phrase representations using RNN encoder-decoder*; Schuster & Paliwal 1997, *Bidirectional
    recurrent neural networks*. Backwards comes last what bears most on a state at the start of a window, forwards what bears on its end.

    Args:
        in_features: numbers at each time.
        width: of a state.

    Example:
        >>> net = BidirectionalGRU(3, 32, rngs=nnx.Rngs(0))
        >>> net(jnp.zeros((8, 100, 3))).shape
        (8, 128)
    """

    def __init__(self, in_features: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.width = width
        self.features = 4 * width
        self.cells = make_stack(lambda r: GRUCell(in_features, width, rngs=r), 2, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        graphdef, state = nnx.split(self.cells)
        directions = jnp.stack([x, jnp.flip(x, axis=-2)])
        # the input's part of the gates in one product for all times; only the state's part has to wait for its turn
        drive = jax.vmap(lambda state, x: nnx.merge(graphdef, state).from_input(x))(state, directions)
        step = jax.vmap(lambda state, h, drive: nnx.merge(graphdef, state)(h, drive))

        def body(carry: tuple[jax.Array, jax.Array], drive: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            h = step(state, carry[0], drive)
            return (h, carry[1] + h), None

        start = jnp.zeros((2, *x.shape[:-2], self.width), drive.dtype)
        (last, total), _ = jax.lax.scan(body, (start, start), jnp.moveaxis(drive, -2, 0))
        return jnp.concatenate([*last, *(total / x.shape[-2])], axis=-1)
