"""Observations with independent posteriors, made outside this project: what an amortized answer is compared with."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError

FIELDS_OF_MOMENTS = {"y", "xb", "post_mean", "post_cov", "draws", "x0_truth"}
FIELDS_OF_DRAWS = {"observation", "reference_samples", "true_parameters"}
KNOWN = FIELDS_OF_MOMENTS | FIELDS_OF_DRAWS

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
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    # np.load documents none of the errors of a damaged file
    except (OSError, ValueError, EOFError, AttributeError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        got = type(error).__name__
        raise ConfigError(f"expected a reference npz at {path}, got {got}; do pass --reference FILE or --no-reference") from error
    for name in sorted(KNOWN & arrays.keys()):
        if not (np.issubdtype(arrays[name].dtype, np.floating) and np.isfinite(arrays[name]).all()):
            raise ConfigError(f"expected finite numbers in `{name}` of {path}, got others; do repair it or pass --no-reference")
    if FIELDS_OF_MOMENTS <= arrays.keys():
        y = arrays["y"].astype(np.float32)
        batch = Batch(input=y, mask=np.ones_like(y), background=arrays["xb"].astype(np.float32))
        return Reference(file.stem, batch, arrays["x0_truth"], arrays["post_mean"], arrays["post_cov"], arrays["draws"], False)
    if FIELDS_OF_DRAWS <= arrays.keys():
        y, draws = arrays["observation"].astype(np.float32), arrays["reference_samples"]
        cov = np.stack([np.cov(event, rowvar=False) for event in draws.astype(np.float64)])
        return Reference(file.stem, Batch(y, np.ones_like(y)), arrays["true_parameters"], draws.mean(axis=1), cov, draws, True)
    got = ", ".join(sorted(arrays))
    raise ConfigError(f"expected arrays of a reference posterior in {path}, got {got}; do see tests/data/README.md")


def check_shapes(reference: Reference, spec: Batch) -> None:
    """Compare a reference with one element of the model it is to judge.

    Raises:
        ConfigError: observations, background or states of another shape.
    """
    n, dim = len(reference.batch.input), math.prod(spec.target.shape)
    background = None if spec.background is None else (n, *spec.background.shape)
    draws = reference.draws.shape[1] if reference.draws.ndim == 3 else "n"
    checks = (
        ("observations", (n, *spec.input.shape), reference.batch.input),
        ("backgrounds", background, reference.batch.background),
        ("true states", (n, dim), reference.truth),
        ("means", (n, dim), reference.mean),
        ("covariances", (n, dim, dim), reference.cov),
        ("draws", (n, draws, dim), reference.draws),
    )
    for what, expected, array in checks:
        got = None if array is None else array.shape
        if got != expected:
            raise ConfigError(f"expected reference {what} of shape {expected}, got {got}; do pass --no-reference or another --reference")
