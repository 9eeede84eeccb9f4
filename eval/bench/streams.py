"""Examples a second that each stream delivers to the training step, at batch 256."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vardax_flax.core.config import to_dict
from vardax_flax.simulators import Lorenz63
from vardax_flax.streams import ArrayStream, RecordStream, SeedStream, Stream, read_records, write_records

BATCH, STEPS = 256, 200


def _rate(stream: Stream, materialize: Any) -> float:
    """Median over three passes of examples a second, payload to batch on the device."""
    rates = []
    for _ in range(3):
        items: Iterator[Any] = stream.iterate(0, STEPS, per_item=10)
        first = next(items)
        jax.block_until_ready(materialize(jax.tree.map(lambda leaf: leaf[0], first)))
        began, count = time.perf_counter(), 0
        for item in items:
            for i in range(jax.tree.leaves(item)[0].shape[0]):
                out = materialize(jax.tree.map(lambda leaf, i=i: leaf[i], item))
                count += BATCH
        jax.block_until_ready(out)
        rates.append(count / (time.perf_counter() - began))
    return float(np.median(rates))


def stream_rates() -> dict[str, float]:
    """Examples a second of Lorenz-63 windows by stream."""
    simulator = Lorenz63()
    seeds = SeedStream(simulator, BATCH)
    with tempfile.TemporaryDirectory() as directory:
        write_records(simulator, directory, n=20_000, seed=0, fingerprint=to_dict(simulator))
        records = RecordStream(directory, BATCH)
        arrays = ArrayStream(read_records(directory), BATCH)
        return {
            "seeds (simulated on the device)": _rate(seeds, jax.jit(seeds.materialize)),
            "arrays (in memory)": _rate(arrays, jax.device_put),
            "records (on disk)": _rate(records, jax.device_put),
        }
