"""The half of a plane of wave numbers that real fields need."""

from __future__ import annotations

import numpy as np


def twins(n: int) -> np.ndarray:
    """How often each column of the half plane of a real transform of n points stands in the whole one, `(n // 2 + 1,)`.

    A column of −k is left out for each of k, but for k = 0 and, of an even n, k = n / 2, which are their own.

    Example:
        >>> twins(6)
        array([1., 2., 2., 1.])
    """
    column = np.arange(n // 2 + 1)
    return np.where((column == 0) | (2 * column == n), 1.0, 2.0)
