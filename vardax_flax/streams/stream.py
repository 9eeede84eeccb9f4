"""Streams: the data of training as a pure function of (seed, step).

A stream splits one training batch in two halves so that each runs where it is cheapest:

    payload(step, rows)   on the host, in grain: a few numbers (indices of simulations) or a whole batch (records)
    materialize(payload)  inside the jitted step, on the device: payload → Batch

Nothing but the step needs saving to resume, every process takes its own `rows` of the same global batch, and held-out examples come
from an index domain that training cannot reach.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require

MAX_STEPS = 2**30


class Stream(abc.ABC):
    """Batches as a function of the step. Iterating starts anywhere and is the same on any number of processes.

    Args:
        batch_size: global batch size, over all devices of all processes.
        seed: of the simulations or of the shuffling.

    Example:
        >>> payload = stream.payload(step=7, rows=slice(0, 256))
        >>> batch = stream.materialize(payload)
    """

    num_workers: int = 0  # processes in which `payload` runs; 0: a thread of this process

    def __init__(self, batch_size: int, seed: int) -> None:
        require(batch_size > 0, "batch_size > 0", batch_size, "pass a positive size")
        require(0 <= seed < 2**32, "0 <= seed < 2**32", seed, "pass such a seed")
        self.batch_size = batch_size
        self.seed = seed

    @property
    @abc.abstractmethod
    def spec(self) -> Batch:
        """Shapes and dtypes of one element, without batch axis."""

    @abc.abstractmethod
    def payload(self, step: int, rows: slice) -> Any:
        """Numpy pytree with the rows `rows` of the global batch of this step. Pure: no state, any order."""

    def materialize(self, payload: Any) -> Batch:
        """Turn a payload into a `Batch`; traced inside the training step, on each device for its own rows."""
        return payload

    @abc.abstractmethod
    def held_out(self, n: int) -> Batch:
        """A fixed batch of n elements that training never sees."""

    def iterate(self, start: int, stop: int, rows: slice | None = None, per_item: int = 1) -> Iterator[Any]:
        """Payloads of steps `start … stop` through grain; each item stacks `per_item` consecutive steps on a new first axis.

        The last item is shorter when `per_item` does not divide the number of steps. Close the iterator by exhausting or deleting it.
        """
        require(0 <= start <= stop <= MAX_STEPS, f"0 <= start <= stop <= {MAX_STEPS}", (start, stop), "pass such steps")
        rows = slice(0, self.batch_size) if rows is None else rows
        steps = grain.MapDataset.range(start, stop, per_item).map(_Stack(self, rows, stop, per_item))
        # one reader thread: a payload is either tiny or read in one vectorised call, and the cores belong to the training step
        dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        if self.num_workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.num_workers, per_worker_buffer_size=2))
        return iter(dataset)


def materialize_of(stream: Stream) -> Callable[[Any], Batch]:
    """The stream's `materialize`; one and the same function for all streams whose payloads are batches already.

    Compiled steps are kept by that function, so another such stream needs no other, and its data are not kept with them.
    """
    return _as_it_is if type(stream).materialize is Stream.materialize else stream.materialize


def _as_it_is(payload: Batch) -> Batch:
    return payload


class _Stack:
    """Picklable map function of `iterate`: one grain element is the payload of several consecutive steps."""

    def __init__(self, stream: Stream, rows: slice, stop: int, per_item: int) -> None:
        self.stream, self.rows, self.stop, self.per_item = stream, rows, stop, per_item

    def __call__(self, first: int) -> Any:
        payloads = [self.stream.payload(step, self.rows) for step in range(first, min(first + self.per_item, self.stop))]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *payloads)
