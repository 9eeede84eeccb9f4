"""Reduced spaces of increments for `IncrementalFourDVar(basis=…)`: few columns that say most of what an increment may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vardax_flax.core.config import require


def fourier_basis(grid: tuple[int, ...], cutoff: int) -> np.ndarray:
    """The real Fourier modes of a periodic grid with at most `cutoff` cycles along each axis, `(size, (2 cutoff + 1)^axes)`, orthonormal.

    Example:
        >>> fourier_basis((40,), cutoff=5).shape
        (40, 11)
    """
    require(0 <= cutoff and all(2 * cutoff < n for n in grid), f"a cutoff below half of each of {grid}", cutoff, "pass a smaller one")
    basis: np.ndarray = np.ones((1, 1))
    for n in grid:
        angle = 2 * np.pi * np.outer(np.arange(n), np.arange(1, cutoff + 1)) / n
        axis = np.concatenate([np.full((n, 1), math.sqrt(0.5)), np.cos(angle), np.sin(angle)], axis=1) * math.sqrt(2 / n)
        basis = np.kron(basis, axis)
    return basis


def wavelet_basis(size: int, levels: int) -> np.ndarray:
    """Haar averages over blocks of `size / 2^levels` cells and the details down to them, `(size, 2^levels)`, orthonormal (Haar 1910).

    Example:
        >>> wavelet_basis(32, levels=3).shape
        (32, 8)
    """
    require(levels >= 0 and size % 2**levels == 0, f"a size that 2^{levels} divides", size, "pass fewer levels")
    columns = [np.full(size, 1 / math.sqrt(size))]
    for level in range(levels):
        block = size // 2**level
        for start in range(0, size, block):
            column = np.zeros(size)
            column[start : start + block // 2], column[start + block // 2 : start + block] = 1, -1
            columns.append(column / math.sqrt(block))
    return np.stack(columns, axis=1)


def eof_basis(states: Any, count: int) -> np.ndarray:
    """The leading empirical orthogonal functions of states `(samples, *state)`, `(size, count)`, orthonormal (Lorenz 1956).

    Example:
        >>> eof_basis(climatology, count=10).shape
        (40, 10)
    """
    flat = np.asarray(states, np.float64).reshape(len(states), -1)
    most = min(flat.shape[0] - 1, flat.shape[1])
    require(1 <= count <= most, f"between 1 and {most} functions", count, "pass more states or a smaller count")
    _, _, rows = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    return rows[:count].T
