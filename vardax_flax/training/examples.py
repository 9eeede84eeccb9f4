"""The examples that training looks at but does not learn from: those of the standardisation, and the held-out ones."""

from __future__ import annotations

import math

import jax
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Estimator
from vardax_flax.streams.indexed import IndexedStream
from vardax_flax.streams.stream import Stream, materialize_of

CALIBRATION_EXAMPLES, CALIBRATION_BYTES = 4096, 256 * 2**20  # as many as that, fewer of large fields


def calibrate(estimator: Estimator, stream: Stream) -> None:
    """Let the estimator learn its standardisation from the first training batches."""
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(stream.spec))
    n = max(1, -(-min(CALIBRATION_EXAMPLES, CALIBRATION_BYTES // size) // stream.batch_size))
    rows = slice(0, stream.batch_size)
    materialize = jax.jit(materialize_of(stream))
    batches = [materialize(stream.payload(step, rows)) for step in range(n)]
    estimator.calibrate(jax.tree.map(lambda *leaves: jax.numpy.concatenate(leaves), *batches))


def held_out_blocks(stream: Stream, n: int, rows: slice) -> Batch:
    """Held-out examples as `(blocks, rows of this process, …)`; the last block is filled up from the front."""
    if isinstance(stream, IndexedStream):
        n = min(n, stream.n_held_out)
        require(n > 0, "held-out simulations", "none", "store more or raise validation_fraction")
    batch = jax.device_get(stream.held_out(n))
    available = batch.input.shape[0]
    blocks = -(-available // stream.batch_size)
    index = np.resize(np.arange(available), (blocks, stream.batch_size))[:, rows]
    return jax.tree.map(lambda leaf: leaf[index], batch)
