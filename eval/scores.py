"""How good an answer is on windows whose truth is known: draws, with or without weights, become moments and scores in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Scored(NamedTuple):
    """An answer to some windows.

    Args:
        mean: `(events, dim)`.
        sd: `(events, dim)`.
        crps: fair, of every component `(events, dim)`.
        truth: `(events, dim)`.
    """

    mean: np.ndarray
    sd: np.ndarray
    crps: np.ndarray
    truth: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """Of the mean `(events, dim)`."""
        return self.mean - self.truth

    def rmse(self, scale: np.ndarray | float = 1.0) -> float:
        """Root mean square error of the mean, in units of `scale`."""
        return float(np.sqrt(np.mean((self.error / scale) ** 2)))

    def mean_crps(self, scale: np.ndarray | float = 1.0) -> float:
        """Mean CRPS, in units of `scale`."""
        return float(np.mean(self.crps / scale))

    @property
    def spread_skill(self) -> float:
        """Root mean variance over the root mean square error of the mean, 1 for a reliable answer."""
        return float(np.sqrt(np.mean(self.sd**2)) / self.rmse())


def score(draws: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> Scored:
    """Moments and fair CRPS of weighted draws.

    CRPS = Σ wᵢ |xᵢ − y| − ½ Σᵢⱼ wᵢ wⱼ |xᵢ − xⱼ| / (1 − Σ wᵢ²), which for equal weights is the fair score of Ferro (2014); the variance is
    divided by the same 1 − Σ wᵢ².

    Args:
        draws: `(events, n, dim)`.
        truth: `(events, dim)`.
        weights: `(events, n)` of sum 1; None for equal ones.

    Example:
        >>> score(draws, truth).rmse()
    """
    draws, truth = np.asarray(draws, np.float64), np.asarray(truth, np.float64)
    events, n, _ = draws.shape
    w = np.full((events, n, 1), 1 / n) if weights is None else np.asarray(weights, np.float64)[..., None]
    left = 1 - np.square(w).sum(axis=1)
    mean = (w * draws).sum(axis=1)
    sd = np.sqrt((w * np.square(draws - mean[:, None])).sum(axis=1) / left)
    departure = draws - truth[:, None]
    order = np.argsort(departure, axis=1)
    ranked, share = np.take_along_axis(departure, order, axis=1), np.take_along_axis(np.broadcast_to(w, draws.shape), order, axis=1)
    pairs = (share * ranked * (2 * np.cumsum(share, axis=1) - share - 1)).sum(axis=1)
    return Scored(mean, sd, (share * np.abs(ranked)).sum(axis=1) - pairs / left, truth)


def score_point(value: np.ndarray, truth: np.ndarray) -> Scored:
    """A single value without spread, whose CRPS is its absolute error.

    Example:
        >>> score_point(np.zeros((10, 3)), truth).mean_crps()
    """
    value = np.broadcast_to(np.asarray(value, np.float64), truth.shape)
    return Scored(value, np.zeros_like(value), np.abs(value - truth), np.asarray(truth, np.float64))
