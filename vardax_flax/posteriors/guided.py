"""The traced half of `AmortizedPosterior.guided_sample`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Encoded
from vardax_flax.heads import guided_sample

Observe = Callable[[jax.Array], jax.Array]  # one state → what is newly observed of it


def _guided(model: Any, batch: Batch, extra: Any, *, n: int, observe: Observe, inflation: float) -> jax.Array:
    key, (y, std) = extra
    located = model._locate(batch)
    lead = located.context.shape[:-1]

    def seen(z: jax.Array, row: tuple[Batch, Encoded]) -> jax.Array:
        return observe(model._to_x(z, *row)).reshape(-1)

    y, std = (field.reshape(*lead, -1) for field in (y, std))
    rows = batch._replace(target=None), located
    draws = guided_sample(model.head, located.context, key, n, seen, y, std, rows, inflation)
    return model._to_x(draws, batch, located, draws=True)


@functools.lru_cache(maxsize=64)
def guided_sampler(n: int, observe: Observe, inflation: float) -> Any:
    """One object for each of these: it is part of the key under which compiled code is kept."""
    return functools.partial(_guided, n=n, observe=observe, inflation=inflation)
