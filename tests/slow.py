"""Variants of a test of which most take their turn with the slow ones."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(
    names: str | tuple[str, ...], values: Iterable[Any], quick: int | Collection[Any] = 1, **options: Any
) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize` of which the first `quick` values, or those named in it, stay with the quick tests.

    One variant shows that a promise is kept; the others run where all tests do.

    Example:
        >>> @mostly_slow("dim", [2, 1, 5])  # 2 is quick
        >>> def test_an_identity(dim): ...
    """
    variants, any_quick = [], False
    for i, value in enumerate(values):
        stays = i < quick if isinstance(quick, int) else value in quick
        any_quick |= stays
        variants.append(pytest.param(*((value,) if isinstance(names, str) else value), marks=() if stays else pytest.mark.slow))
    assert any_quick, f"expected a quick value among {quick}, got none in {names}"
    return pytest.mark.parametrize(names, variants, **options)
