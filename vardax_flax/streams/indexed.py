"""Streams over a fixed number of stored simulations: which element is row r of step s, as a pure function of the seed."""

from __future__ import annotations

import abc
import math

import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.streams.stream import Stream

_SPLIT, _SHUFFLE = 0, 1  # second word of the Philox key: what the random numbers are for


def philox(seed: int, use: int, high: int, low: int = 0) -> np.random.Generator:
    """numpy generator number (high, low) of a seed.

    All generators of one (seed, use) count through one Philox sequence, 2^128 blocks apart, so no two of them overlap
    (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*).
    """
    key, counter = np.array([seed, use], np.uint64), np.array([0, 0, low, high], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class EpochOrder:
    """Shuffled epochs without end: place e of the sequence is element perm_{e // m}[e % m] of the m training elements.

    Args:
        n: stored elements.
        seed: of the held-out choice and of the shuffling.
        validation_fraction: share of the n elements, chosen by the seed, that training never touches.

    Raises:
        ConfigError: no element, or a fraction outside [0, 1).

    Example:
        >>> order = EpochOrder(n=10, seed=0, validation_fraction=0.2)
        >>> sorted(order.indices(0, 8)) == sorted(order.train)
        True
    """

    def __init__(self, n: int, seed: int, validation_fraction: float) -> None:
        require(n > 0, "at least one simulation", n, "pass a dataset that is not empty")
        require(0 <= validation_fraction < 1, "0 <= validation_fraction < 1", validation_fraction, "pass such a fraction")
        held_out = min(round(validation_fraction * n), n - 1)
        split = philox(seed, _SPLIT, 0).permutation(n)
        self.seed = seed
        self.held_out = split[:held_out]
        self.train = np.sort(split[held_out:])
        self._last: tuple[int, np.ndarray] | None = None

    def _epoch(self, epoch: int) -> np.ndarray:
        last = self._last  # read and written as one object, so that threads see a matching pair
        if last is None or last[0] != epoch:
            last = self._last = (epoch, philox(self.seed, _SHUFFLE, epoch).permutation(self.train))
        return last[1]

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Elements at places `start … stop` of the sequence, shape `(stop - start,)`."""
        m = len(self.train)
        epochs = range(start // m, -(-stop // m))
        parts = [self._epoch(epoch)[max(start - epoch * m, 0) : stop - epoch * m] for epoch in epochs]
        return np.concatenate([self.train[:0], *parts])


class IndexedStream(Stream):
    """A stream over stored elements: every epoch is covered exactly once, and batches straddle epochs.

    Args:
        n: stored elements.
        batch_size: global batch size.
        seed: of the held-out choice and of the shuffling.
        validation_fraction: share of the elements that training never touches.
    """

    def __init__(self, n: int, batch_size: int, seed: int, validation_fraction: float) -> None:
        super().__init__(batch_size, seed)
        self._order = EpochOrder(n, seed, validation_fraction)

    @property
    def order(self) -> EpochOrder:
        """Which element stands where, and which are held out."""
        return self._order

    @abc.abstractmethod
    def read(self, indices: np.ndarray) -> Batch:
        """The stored elements of these indices, numpy arrays `(len(indices), …)`."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every training element has been seen once."""
        return math.ceil(len(self._order.train) / self.batch_size)

    @property
    def n_held_out(self) -> int:
        """Elements that training never touches."""
        return len(self._order.held_out)

    def payload(self, step: int, rows: slice) -> Batch:
        first = step * self.batch_size
        return self.read(self._order.indices(first + rows.start, first + rows.stop))

    def held_out(self, n: int) -> Batch:
        available = self.n_held_out
        require(0 < n <= available, f"1 to {available} held-out simulations", n, "ask for fewer, store more or raise validation_fraction")
        return self.read(self._order.held_out[:n])
