"""A program that is compiled for some configuration is kept for the next time it is asked for."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def remembered(make: Callable[..., T]) -> Callable[..., T]:
    """`functools.lru_cache` for arguments compared by value; where one is not, `make` is called anew.

    An object that is equal only to itself may change behind its hash, and a program made for it would go on with what it was.

    Example:
        >>> double = remembered(lambda config: jax.jit(lambda x: config.factor * x))
        >>> double(config) is double(config)
        True
    """
    kept = functools.lru_cache(maxsize=16)(make)

    @functools.wraps(make)
    def call(*arguments: Any) -> T:
        return kept(*arguments) if all(_by_value(argument) for argument in arguments) else make(*arguments)

    return call


def traced(tree: Any) -> bool:
    """Whether any leaf is a tracer: then the caller has a program of its own."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _by_value(argument: Any) -> bool:
    if argument is None or isinstance(argument, (type, types.FunctionType)):
        return True
    try:
        hash(argument)
    except TypeError:
        return False
    own: Any = type(argument).__hash__
    return own is not object.__hash__
