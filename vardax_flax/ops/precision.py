"""Full precision where numbers are judged or integrated, whatever the device does by default."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

F = TypeVar("F", bound=Callable)


def full_precision(function: F) -> F:
    """Multiply matrices inside `function` in the precision of their type.

    GPUs and TPUs round the factors of a float32 product to 10 or 7 bits unless told otherwise. A network does not mind; a simulator, a
    density or the inverse of a map does.

    Example:
        >>> product = full_precision(jnp.matmul)
    """

    @functools.wraps(function)
    def precise(*args, **kwargs):  # type: ignore[no-untyped-def]
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return precise  # type: ignore[return-value]
