"""Observations with independent posteriors, made outside this project: what an amortized answer is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError

ROOT = Path(__file__).resolve().parent.parent


class Reference(NamedTuple):
    """Independent posteriors of some observations.

    Args:
        name: of the file.
        batch: the observations, `(events, *obs)`.
        truth: true states `(events, dim)`.
        mean: reference posterior mean `(events, dim)`.
        cov: reference posterior covariance `(events, dim, dim)`.
        draws: reference draws `(events, n, dim)`.
        draws_exact: the draws are what the reference is made of, so a two-sample test on them is meaningful.
    """

    name: str
    batch: Batch
    truth: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    draws: np.ndarray
    draws_exact: bool


def load_reference(path: str) -> Reference:
    """Read a reference file, given as a path or relative to the project.

    Raises:
        ConfigError: no such file, or not one of the two known layouts.
    """
    file = Path(path) if Path(path).exists() else ROOT / path
    try:
        with np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected a reference npz at {path}, got {type(error).__name__}; do pass --reference FILE or --no-reference") from error
    if {"y", "xb", "post_mean", "post_cov", "draws", "x0_truth"} <= arrays.keys():
        y = arrays["y"].astype(np.float32)
        batch = Batch(input=y, mask=np.ones_like(y), background=arrays["xb"].astype(np.float32))
        return Reference(file.stem, batch, arrays["x0_truth"], arrays["post_mean"], arrays["post_cov"], arrays["draws"], False)
    if {"observation", "reference_samples", "true_parameters"} <= arrays.keys():
        y, draws = arrays["observation"].astype(np.float32), arrays["reference_samples"]
        cov = np.stack([np.cov(event, rowvar=False) for event in draws.astype(np.float64)])
        return Reference(file.stem, Batch(y, np.ones_like(y)), arrays["true_parameters"], draws.mean(axis=1), cov, draws, True)
    raise ConfigError(f"expected arrays of a reference posterior in {path}, got {', '.join(sorted(arrays))}; do see tests/data/README.md")
