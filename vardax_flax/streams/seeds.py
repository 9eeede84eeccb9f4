"""The default stream: grain hands out counters, the device turns each into a key and simulates inside the training step."""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Simulator
from vardax_flax.ops.precision import full_precision
from vardax_flax.streams.stream import MAX_STEPS, Stream


class Domain(enum.IntEnum):
    """What a simulation is for. The domain is part of its counter, so no two uses can share one."""

    TRAIN = 0
    HELD_OUT = 1
    GATES = 2
    OBSERVE = 3  # a stored state anew


def counters(domain: Domain, step: int, rows: slice) -> np.ndarray:
    """64-bit counters (domain, step, row) of some rows of a batch, as uint32 pairs `(rows, 2)`."""
    require(0 <= step < MAX_STEPS, f"0 <= step < {MAX_STEPS}", step, "pass such a step")
    row = np.arange(rows.start, rows.stop, dtype=np.uint32)
    return np.stack([np.full_like(row, (int(domain) << 30) | step), row], axis=-1)


def keys_of(seed: int, pairs: jax.Array | np.ndarray) -> jax.Array:
    """Random keys of counters: Threefry-2x32 under the key of `seed`.

    A block cipher is a bijection, so different counters give different keys with certainty, not just with high probability
    (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*).

    Args:
        seed: of the run.
        pairs: `(n, 2)` uint32 from `counters`.
    """
    root = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    pairs = jnp.asarray(pairs, jnp.uint32)
    words = threefry_2x32((root[0], root[1]), jnp.concatenate([pairs[:, 0], pairs[:, 1]]))
    return jax.random.wrap_key_data(words.reshape(2, -1).T, impl="threefry2x32")


@full_precision
def simulate_batch(simulator: Simulator, seed: int, pairs: jax.Array | np.ndarray) -> Batch:
    """Simulate one element for each counter."""
    return jax.vmap(simulator.sample)(keys_of(seed, pairs))


class SeedStream(Stream):
    """Unlimited fresh simulations, made on the device that trains on them.

    Args:
        simulator: any `Simulator` in JAX.
        batch_size: global batch size.
        seed: of the simulations.

    Example:
        >>> stream = SeedStream(Lorenz63(), batch_size=256, seed=0)
        >>> batch = stream.materialize(stream.payload(0, slice(0, 256)))
    """

    def __init__(self, simulator: Simulator, batch_size: int, seed: int = 0) -> None:
        super().__init__(batch_size, seed)
        self.simulator = simulator
        self._simulate = jax.jit(lambda pairs: simulate_batch(simulator, seed, pairs))

    @property
    def spec(self) -> Batch:
        return self.simulator.spec

    def payload(self, step: int, rows: slice) -> np.ndarray:
        return counters(Domain.TRAIN, step, rows)

    def materialize(self, payload: jax.Array | np.ndarray) -> Batch:
        return simulate_batch(self.simulator, self.seed, payload)

    def held_out(self, n: int, domain: Domain = Domain.HELD_OUT) -> Batch:
        return self._simulate(counters(domain, 0, slice(0, n)))
