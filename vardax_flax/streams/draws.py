"""Observations with draws of their posteriors, made by an oracle: one draw at a time."""

from __future__ import annotations

import jax
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.streams.arrays import ArrayStream
from vardax_flax.streams.indexed import IndexedStream


class DrawsStream(IndexedStream):
    """Pairs (y_i, x_ij) of n observations with J posterior draws each: an epoch shows every observation once, with the next of its draws.

    Training on it distils whatever made the draws into q: min −mean_ij log q(x_ij | y_i). Observations, not pairs, are held out.

    Args:
        batch: arrays `(n, …)`, but `target` is `(n, J, *state)`.
        batch_size: global batch size.
        seed: of the held-out choice and of the shuffling.
        validation_fraction: share of the observations that training never touches.

    Raises:
        ConfigError: an empty dataset, no axis of draws, a fraction outside [0, 1).
        ValueError, TypeError: what `check_batch` finds in the arrays.

    Example:
        >>> stream = DrawsStream(Batch(y, mask, draws), batch_size=256)
        >>> stream.payload(0, slice(0, 256)).target.shape
        (256, 3)
    """

    def __init__(self, batch: Batch, batch_size: int, seed: int = 0, validation_fraction: float = 0.1) -> None:
        shape = np.shape(batch.target) if batch.target is not None else None
        require(shape is not None and len(shape) > 1 and shape[1] > 0, "`target` of shape (n, draws, *state)", shape, "stack the draws")
        self._stored = ArrayStream(batch, batch_size, seed, validation_fraction)
        self.draws = np.shape(batch.target)[1]
        super().__init__(np.shape(batch.input)[0], batch_size, seed, validation_fraction)

    @property
    def spec(self) -> Batch:
        spec = self._stored.spec
        return spec._replace(target=jax.ShapeDtypeStruct(spec.target.shape[1:], spec.target.dtype))

    @property
    def n_held_out(self) -> int:
        """Pairs whose observation training never touches."""
        return len(self._order.held_out) * self.draws

    def read(self, indices: np.ndarray) -> Batch:
        """Pairs, of which index i J + j is draw j of observation i."""
        rows, which = np.divmod(indices, self.draws)
        stored = self._stored.read(rows)
        return stored._replace(target=stored.target[np.arange(len(rows)), which])

    def payload(self, step: int, rows: slice) -> Batch:
        first, last = (step * self.batch_size + row for row in (rows.start, rows.stop))
        observations = self._order.indices(first, last)
        epoch = np.arange(first, last) // len(self._order.train)
        return self.read(observations * self.draws + (epoch + observations) % self.draws)

    def held_out(self, n: int) -> Batch:
        available = self.n_held_out
        require(0 < n <= available, f"1 to {available} held-out pairs", n, "ask for fewer, store more or raise validation_fraction")
        draw, row = np.divmod(np.arange(n), len(self._order.held_out))  # every observation before the next draw of any
        return self.read(self._order.held_out[row] * self.draws + draw)
