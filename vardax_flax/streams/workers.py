"""Simulators written in Python or numpy, run in worker processes beside the training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from absl import flags

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.streams.elements import first_fault, hide_unobserved, is_real, training_dtype
from vardax_flax.streams.indexed import philox
from vardax_flax.streams.seeds import Domain, counters
from vardax_flax.streams.stream import Stream

if not flags.FLAGS.is_parsed():  # grain reads absl flags, in this process and in every spawned child, which imports this module
    flags.FLAGS.mark_as_parsed()

_DRAWS = 2  # second word of the Philox key, beside those of stored simulations


class WorkerStream(Stream):
    """Unlimited fresh simulations of a Python function, made in spawned processes.

    The function is called once for each row of each step with a generator that depends on (seed, domain, step, row) alone, so the draws
    are the same for any number of workers and processes. A script that iterates the stream needs an `if __name__ == "__main__"` guard.

    Args:
        simulate: `(np.random.Generator) → Batch` of one element without batch axis; picklable, and best free of JAX, which would start
            in every worker.
        batch_size: global batch size.
        seed: of the simulations.
        num_workers: processes that simulate; 0 simulates in a thread of this process.

    Raises:
        RuntimeError: the function raised; names step and row.
        ValueError, TypeError: it returned something else than before, or a value that is not finite; names step and row.

    Example:
        >>> stream = WorkerStream(draw_pendulum, batch_size=64, num_workers=4)
        >>> batches = stream.iterate(0, 1000)
    """

    def __init__(self, simulate: Callable[[np.random.Generator], Batch], batch_size: int, seed: int = 0, num_workers: int = 2) -> None:
        super().__init__(batch_size, seed)
        require(num_workers >= 0, "num_workers >= 0", num_workers, "pass such a number")
        self.num_workers = num_workers
        self._simulate = simulate
        first = [_array(name, value, _place(0, 0)) for name, value in _fields(self._draw(counters(Domain.TRAIN, 0, slice(0, 1))[0], 0, 0))]
        self._shapes = Batch(*(None if f is None else (f.shape, training_dtype(f)) for f in first))
        shape, mask = (None if f is None else f.shape for f in first[:2])
        require(mask == shape, f"`mask` of the shape of `input`, {shape}", mask, "return a mask of 1 where observed and 0 elsewhere")

    @property
    def spec(self) -> Batch:
        return Batch(*(None if f is None else jax.ShapeDtypeStruct(*f) for f in self._shapes))

    def payload(self, step: int, rows: slice) -> Batch:
        return self._elements(Domain.TRAIN, step, rows)

    def held_out(self, n: int, domain: Domain = Domain.HELD_OUT) -> Batch:
        return self._elements(domain, 0, slice(0, n))

    def _draw(self, pair: np.ndarray, step: int, row: int) -> Batch:
        try:
            drawn = self._simulate(philox(self.seed, _DRAWS, int(pair[0]), int(pair[1])))
        except (Exception, SystemExit) as error:  # an exit would leave the training process waiting for a dead worker
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise RuntimeError(f"expected a simulation, got {text}{_place(step, row)}; do repair the simulator") from error
        if not isinstance(drawn, Batch):
            raise TypeError(f"expected a Batch, got {type(drawn).__name__}{_place(step, row)}; do return Batch(input, mask, target)")
        return drawn

    def _checked(self, pair: np.ndarray, step: int, row: int) -> list[np.ndarray | None]:
        where = _place(step, row)
        arrays = [_array(name, value, where) for name, value in _fields(self._draw(pair, step, row))]
        for name, array, first in zip(Batch._fields, arrays, self._shapes, strict=True):
            expected, got = None if first is None else first[0], None if array is None else array.shape
            if expected != got:
                raise ValueError(
                    f"expected `{name}` of shape {expected} as in the first simulation, got {got}{where}; do repair the simulator"
                )
        return arrays

    def _elements(self, domain: Domain, step: int, rows: slice) -> Batch:
        drawn = [self._checked(pair, step, row) for row, pair in enumerate(counters(domain, step, rows), start=rows.start)]
        columns = zip(*drawn, strict=True) if drawn else ([] for _ in self._shapes)
        with np.errstate(over="ignore"):  # an overflow is an infinity, which is refused below
            stacked = [_stack(column, shape) for column, shape in zip(columns, self._shapes, strict=True)]
        batch = hide_unobserved(Batch(*stacked))
        fault = first_fault(batch)
        if fault is not None:
            raise ValueError(f"{fault[1]}{_place(step, rows.start + fault[0])}; do repair the simulator")
        return batch


def _stack(column: Iterable[np.ndarray | None], shape: tuple[tuple[int, ...], np.dtype] | None) -> np.ndarray | None:
    return None if shape is None else np.asarray([*column], shape[1]).reshape(-1, *shape[0])


def _fields(batch: Batch) -> list[tuple[str, Any]]:
    return list(zip(batch._fields, batch, strict=True))


def _place(step: int, row: int) -> str:
    return f" at step {step}, row {row}"


def _array(name: str, value: Any, where: str) -> np.ndarray | None:
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if not is_real(array.dtype):
        raise TypeError(f"expected `{name}` as an array of real numbers, got {type(value).__name__}{where}; do return numpy arrays")
    return array
