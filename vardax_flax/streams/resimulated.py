"""Stored states, observed anew every time they are met."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Observing
from vardax_flax.ops.precision import full_precision
from vardax_flax.streams.indexed import IndexedStream
from vardax_flax.streams.seeds import Domain, counters, keys_of
from vardax_flax.streams.stream import Stream


class Resimulation(NamedTuple):
    """A payload: stored elements and the counters of their new observations."""

    stored: Batch
    pairs: np.ndarray


class ResimulatedStream(IndexedStream):
    """The stored states of a stream with fresh noise and gaps, y ~ p(y | x), at every step: augmentation that is exact.

    Where states are dear and observing them is cheap, a store of n states then never repeats an observation, and a network cannot learn
    noise by heart. The observation of row r of step s has its own key, made on the device that trains on it. Held-out elements are those of
    the store, as they are. `SeedStream` does all this by itself where simulating is cheap.

    Args:
        stored: an `ArrayStream` or `RecordStream` with targets.
        simulator: what observes them.

    Raises:
        ConfigError: nothing but observations is stored.

    Example:
        >>> stream = ResimulatedStream(RecordStream("data/l96", batch_size=256), Lorenz96())
    """

    def __init__(self, stored: IndexedStream, simulator: Observing) -> None:
        require(stored.spec.target is not None, "stored states to observe", None, "store a `target`")
        Stream.__init__(self, stored.batch_size, stored.seed)
        self._stored, self._order = stored, stored.order
        self.simulator = simulator

    @property
    def spec(self) -> Batch:
        return self._stored.spec

    @property
    def n_held_out(self) -> int:
        """Elements that training never touches."""
        return self._stored.n_held_out

    def read(self, indices: np.ndarray) -> Batch:
        return self._stored.read(indices)

    def held_out(self, n: int) -> Batch:
        return self._stored.held_out(n)

    def payload(self, step: int, rows: slice) -> Resimulation:  # type: ignore[override]
        return Resimulation(self._stored.payload(step, rows), counters(Domain.OBSERVE, step, rows))

    @full_precision
    def materialize(self, payload: Resimulation) -> Batch:
        keys = keys_of(self.seed, payload.pairs)
        observed, mask = jax.vmap(self.simulator.observe)(jax.numpy.asarray(payload.stored.target), keys)
        return payload.stored._replace(input=observed, mask=mask)
