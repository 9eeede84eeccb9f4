"""Simulations that fit in memory, as arrays."""

from __future__ import annotations

import jax
import numpy as np

from vardax_flax.core.batch import Batch, check_batch
from vardax_flax.core.config import require
from vardax_flax.streams.elements import training_dtype
from vardax_flax.streams.indexed import IndexedStream


def element_spec(batch: Batch) -> Batch:
    """Shapes and training dtypes of one element of a batch with one leading axis."""
    for name, value in zip(batch._fields, batch, strict=True):
        require(value is None or np.ndim(value) > 0, f"a leading axis of simulations in `{name}`", "a scalar", "stack the simulations")
    fields = [None if f is None else jax.ShapeDtypeStruct(np.shape(f)[1:], training_dtype(f)) for f in batch]
    spec = Batch(*fields)
    return spec._replace(mask=spec.input)  # check_batch compares the mask with the input it belongs to


def _host() -> jax.Device | None:
    """Where to check a dataset, which need not fit on the accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        return None


class ArrayStream(IndexedStream):
    """Stored simulations in memory, shuffled anew in every epoch.

    Args:
        batch: arrays `(n, …)` of n simulations; a NaN in `input` where `mask` is 0 counts as unobserved.
        batch_size: global batch size.
        seed: of the held-out choice and of the shuffling.
        validation_fraction: share of the simulations that training never touches.

    Raises:
        ConfigError: an empty dataset, a fraction outside [0, 1).
        ValueError, TypeError: what `check_batch` finds in the arrays.

    Example:
        >>> stream = ArrayStream(Batch(y, mask, x), batch_size=256)
        >>> batch = stream.payload(0, slice(0, 256))
    """

    def __init__(self, batch: Batch, batch_size: int, seed: int = 0, validation_fraction: float = 0.1) -> None:
        spec = element_spec(batch)
        super().__init__(np.shape(batch.input)[0], batch_size, seed, validation_fraction)
        with jax.default_device(_host()):
            checked = check_batch(Batch(*batch), spec, allow_unobserved=True)
        self._arrays = type(batch)(*(None if f is None else np.asarray(f) for f in checked))
        self._spec = spec

    @property
    def spec(self) -> Batch:
        return self._spec

    def read(self, indices: np.ndarray) -> Batch:
        return type(self._arrays)(*(None if f is None else f[indices] for f in self._arrays))
