"""The container every part of the library exchanges: observations with their mask, and what is to be inferred.

A batch is a plain `NamedTuple`, so it is a pytree, costs nothing and survives `jax.eval_shape` and runtime type checks.
Leading axes are free: a simulator returns one element without any, a stream returns `(batch, ...)`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np


class Batch(NamedTuple):
    """Observations and the state they inform: a draw of the joint p(x_b) p(x | x_b) p(y | x).

    Args:
        input: observation y, shape `(*batch, *obs)`, in the units of the instrument. Where `mask` is 0 its value is ignored.
        mask: 1 where observed, 0 where not, same shape as `input`.
        target: state x to infer, shape `(*batch, *state)`, or None when it is unknown.
        background: x_b, a prior guess of x that the posterior p(x | y, x_b) conditions on, shape `(*batch, *state)`.
        coords: where the observations lie, shape `(*batch, *obs, n_coords)`, for irregular observations.
        noise_scale: standard deviation of the observation error, shape `(*batch, *obs)`, when it varies.

    Example:
        >>> batch = Batch(input=jnp.zeros((4, 10, 3)), mask=jnp.ones((4, 10, 3)))
        >>> batch.target is None
        True
    """

    input: Any
    mask: Any
    target: Any = None
    background: Any = None
    coords: Any = None
    noise_scale: Any = None


class Batch1D(Batch):
    """A batch of series: `input`, `mask` and `target` of shape `(batch, time, site)`."""

    __slots__ = ()
    rank = 3


class Batch2D(Batch):
    """A batch of image series: `input`, `mask` and `target` of shape `(batch, time, height, width)`."""

    __slots__ = ()
    rank = 4


class Batch2DMultivar(Batch):
    """A batch of multi-variable image series: arrays of shape `(batch, time, channel, height, width)`."""

    __slots__ = ()
    rank = 5


B = TypeVar("B", bound=Batch)


def leading_shape(batch: Batch, spec: Batch) -> tuple[int, ...]:
    """Batch axes of `batch`, given the `spec` of one element: `(*batch, *obs)` minus `obs`.

    Example:
        >>> element = Batch(jnp.zeros((3,)), jnp.ones((3,)))
        >>> leading_shape(Batch(jnp.zeros((8, 3)), jnp.ones((8, 3))), element)
        (8,)
    """
    return tuple(batch.input.shape[: max(0, batch.input.ndim - len(spec.input.shape))])


def _first_index(where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(where)[0])


def _as_real(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"expected `{name}` as an array, got {type(value).__name__}; do stack it into one array") from error
    # ml_dtypes such as bfloat16 are not numpy's own kinds, so jax is asked
    if not (jnp.issubdtype(array.dtype, np.floating) or jnp.issubdtype(array.dtype, np.integer) or array.dtype == bool):
        raise TypeError(f"expected `{name}` of a real dtype, got {array.dtype}; do convert it to float32")
    return array


def _check_shape(name: str, array: np.ndarray, expected: Any, lead: tuple[int, ...]) -> None:
    shape = (*lead, *expected.shape)
    if array.shape != shape:
        raise ValueError(f"expected `{name}` of shape {shape}, got {array.shape}; do reshape it or check the preset's sizes")


def check_batch(batch: B, spec: Batch | None = None, *, allow_unobserved: bool = False) -> B:
    """Check a batch that a user brings, and return it ready for a model: real dtype, unobserved values set to 0.

    A NaN where the mask is 0 counts as unobserved; elsewhere it is an error that names the first index.

    Args:
        batch: the arrays, with any leading axes.
        spec: shapes of one element as `jax.ShapeDtypeStruct` (`simulator.spec`). None checks `input` against `mask`, and the
            rank for `Batch1D`, `Batch2D`, `Batch2DMultivar`.
        allow_unobserved: accept an element without a single observation (its posterior is the prior).

    Raises:
        ValueError: wrong shape, a missing field, a mask other than 0 or 1, a non-finite value, a `noise_scale` that is not
            positive, a window without observation.
        TypeError: a dtype that is not real.

    Example:
        >>> checked = check_batch(Batch(np.array([[1.0, np.nan]]), np.array([[1, 0]])))
        >>> float(checked.input[0, 1])
        0.0
    """
    arrays = {name: _as_real(name, value) for name, value in zip(Batch._fields, batch, strict=True) if value is not None}
    if "input" not in arrays:
        raise ValueError("expected `input`, got None; do pass Batch(input=..., mask=...)")
    if spec is None:
        spec, lead = _own_spec(type(batch), arrays)
    else:
        lead = leading_shape(Batch(**{"mask": None, **arrays}), spec)
    fields: dict[str, np.ndarray] = {}
    for name, expected in zip(Batch._fields, spec, strict=True):
        if name in arrays and expected is not None:
            _check_shape(name, arrays[name], expected, lead)
            fields[name] = arrays[name]
        elif expected is not None and name != "target":
            raise ValueError(f"expected `{name}` of shape {(*lead, *expected.shape)}, got None; do pass Batch(..., {name}=...)")
        elif name in arrays and name != "target":
            raise ValueError(
                f"expected no `{name}` (the model was not trained with one), got shape {arrays[name].shape}; do leave it out"
            )
    _check_mask(fields["mask"], lead, allow_unobserved)
    observed = fields["mask"] != 0
    return batch._replace(**{name: _ready(name, value, observed, getattr(spec, name).dtype) for name, value in fields.items()})


def _own_spec(kind: type[Batch], arrays: dict[str, np.ndarray]) -> tuple[Batch, tuple[int, ...]]:
    """The spec that a batch has by itself: `mask` like `input`, and as many axes as its kind has."""
    shape = arrays["input"].shape
    rank = getattr(kind, "rank", None)
    if rank is not None and len(shape) != rank:
        raise ValueError(f"expected `input` with {rank} axes for {kind.__name__}, got shape {shape}; do add or remove axes")
    lead = shape[:1] if rank is not None else ()
    dtype = jnp.promote_types(jnp.float32, arrays["input"].dtype)
    own = {name: jax.ShapeDtypeStruct(array.shape[len(lead) :], dtype) for name, array in arrays.items()}
    return Batch(**{**own, "mask": own["input"]}), lead


def _check_mask(mask: np.ndarray, lead: tuple[int, ...], allow_unobserved: bool) -> None:
    bad = (mask != 0) & (mask != 1)
    if bad.any():
        index = _first_index(bad)
        raise ValueError(f"expected `mask` of 0 and 1, got {mask[index]} at {index}; do pass 1 where observed and 0 elsewhere")
    seen = (mask != 0).any(axis=tuple(range(len(lead), mask.ndim)))
    if not allow_unobserved and not seen.all():
        where = _first_index(~np.atleast_1d(seen))
        raise ValueError(
            f"expected at least one observation in every window, got an all-zero `mask` in window {where if len(where) > 1 else where[0]}; "
            "do drop that window, or set allow_unobserved=True to get the prior back"
        )


def _ready(name: str, value: np.ndarray, observed: np.ndarray, dtype: Any) -> jax.Array:
    """The field in the model's precision, with a harmless value wherever it belongs to an unobserved place."""
    with np.errstate(over="ignore"):  # an overflow is an infinity, which is refused below
        value = value.astype(jax.dtypes.canonicalize_dtype(dtype))
    if name in ("input", "coords", "noise_scale"):
        place = observed if value.ndim == observed.ndim else observed[..., None]
        value = np.where(place, value, value.dtype.type(name == "noise_scale"))  # people divide by a scale: 1 there, never 0
    bad = ~np.isfinite(value)
    if bad.any():
        index = _first_index(bad)
        raise ValueError(
            f"expected finite values in `{name}` where observed, got {value[index]} at {index}; do set `mask` to 0 there or repair it"
        )
    if name == "noise_scale" and (value <= 0).any():
        index = _first_index(value <= 0)
        raise ValueError(f"expected `noise_scale` > 0 where observed, got {value[index]} at {index}; do pass a standard deviation")
    return jnp.asarray(value)
