"""Where training data come from: simulated on the device, in worker processes, from arrays or from records on disk."""

from vardax_flax.streams.arrays import ArrayStream
from vardax_flax.streams.draws import DrawsStream
from vardax_flax.streams.indexed import EpochOrder, IndexedStream
from vardax_flax.streams.manifest import Manifest, RecordError, load_manifest
from vardax_flax.streams.records import RecordStream, read_records, write_records
from vardax_flax.streams.resimulated import ResimulatedStream
from vardax_flax.streams.seeds import Domain, SeedStream, counters, keys_of, simulate_batch
from vardax_flax.streams.stream import MAX_STEPS, Stream
from vardax_flax.streams.workers import WorkerStream

STREAMS = (SeedStream, ArrayStream, WorkerStream, RecordStream, DrawsStream, ResimulatedStream)

__all__ = [
    "MAX_STEPS",
    "STREAMS",
    "ArrayStream",
    "Domain",
    "DrawsStream",
    "EpochOrder",
    "IndexedStream",
    "Manifest",
    "RecordError",
    "RecordStream",
    "ResimulatedStream",
    "SeedStream",
    "Stream",
    "WorkerStream",
    "counters",
    "keys_of",
    "load_manifest",
    "read_records",
    "simulate_batch",
    "write_records",
]
