"""Checks of simulated elements in plain numpy, so that they run in worker processes without starting JAX."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch

_LOCAL = ("input", "coords", "noise_scale")  # belong to an observation: ignored where it is not observed


@functools.lru_cache  # asked for every field of every simulation
def is_real(dtype: np.dtype) -> bool:
    """Whether values of this dtype, ml_dtypes such as bfloat16 included, are real numbers."""
    return bool(jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer) or dtype.kind == "b")


def training_dtype(value: Any) -> np.dtype:
    """The real dtype a user's array is trained in: at least float32, float64 only if JAX has it enabled.

    Raises:
        TypeError: `value` is not real.
    """
    dtype = np.asarray(value).dtype
    if not is_real(dtype):
        raise TypeError(f"expected real numbers, got dtype {dtype}; do convert them to float32")
    return np.dtype(jax.dtypes.canonicalize_dtype(jnp.promote_types(jnp.float32, dtype)))


def _hidden(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    unobserved = mask == 0
    return unobserved if value.ndim == mask.ndim else unobserved[..., None]


def hide_unobserved(batch: Batch) -> Batch:
    """Give what belongs to unobserved places, where a NaN is allowed, the harmless value of `check_batch`: 0, and 1 for a scale."""
    local = {name: value for name in _LOCAL if (value := getattr(batch, name)) is not None}
    hidden = {name: np.where(_hidden(batch.mask, value), value.dtype.type(name == "noise_scale"), value) for name, value in local.items()}
    return batch._replace(**hidden)


def first_fault(batch: Batch) -> tuple[int, str] | None:
    """Row and description of the first value that no model may see, or None.

    Args:
        batch: numpy arrays `(rows, …)`, after `hide_unobserved`.

    Example:
        >>> first_fault(Batch(np.array([[0.0], [np.nan]]), np.ones((2, 1))))
        (1, 'expected finite `input`, got nan')
    """
    faults = []
    for name, value in zip(batch._fields, batch, strict=True):
        if value is None:
            continue
        bad, expected = ~np.isfinite(value), f"finite `{name}`"
        if name == "mask":
            bad, expected = (value != 0) & (value != 1), "0 or 1 in `mask`"
        elif name == "noise_scale":
            bad, expected = bad | (value <= 0), "finite `noise_scale` > 0"
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            faults.append((index[0], f"expected {expected}, got {value[index]}"))
    return min(faults, default=None)
