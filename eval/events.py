"""What gates are asked on: simulations that training cannot have met, and keys of their own."""

from __future__ import annotations

import functools

import jax

from train.config import GatesConfig
from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Simulator
from vardax_flax.streams import Domain, counters, keys_of, simulate_batch


def gates_key(gates: GatesConfig, purpose: int) -> jax.Array:
    """A key for one purpose (1, 2, …; 0 is that of `held_out`), from the counters that belong to the gates."""
    return keys_of(gates.seed, counters(Domain.GATES, purpose, slice(0, 1)))[0]


def held_out(simulator: Simulator, gates: GatesConfig, n: int) -> Batch:
    """n simulations that training cannot have met."""
    return jax.jit(functools.partial(simulate_batch, simulator, gates.seed))(counters(Domain.GATES, 0, slice(0, n)))
