"""Classifier two-sample test: a metric of how well a neural network tells two samples apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vardax_flax.core.config import require

FEW = 20_000  # numbers, for which it does not pay to start other processes


def c2st(p: ArrayLike, q: ArrayLike, *, seed: int = 0, folds: int = 5) -> float:
    """Cross-validated accuracy of a classifier between two samples: 0.5 when they agree, 1 when they are disjoint.

    The protocol of the sbibm benchmark (Lueckmann et al. 2021): both samples standardised by the first one's mean and standard deviation,
    a multilayer perceptron of two hidden layers of 10 dim units (ReLU, Adam, at most 10 000 epochs), mean accuracy over shuffled folds.
    Read it beside the value of two samples of the reference of the same sizes: it is above 0.5 on average even for equal distributions of
    small samples, and is no p-value.

    Args:
        p: reference sample `(n, dim)`.
        q: sample to judge `(m, dim)`.
        seed: of the folds and of the network.
        folds: number of folds.

    Raises:
        ConfigError: samples that are not `(n, dim)` of the same dim, too few for the folds, non-finite, or a constant reference component.

    Example:
        >>> c2st(rng.normal(size=(1000, 2)), rng.normal(size=(1000, 2)))  # about 0.5
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    p, q = np.asarray(p, float), np.asarray(q, float)
    require(p.ndim == q.ndim == 2 and p.shape[1] == q.shape[1], "two samples (n, dim)", (p.shape, q.shape), "reshape them")
    require(min(len(p), len(q)) >= folds >= 2, f"at least {folds} draws each", (len(p), len(q)), "draw more")
    require(bool(np.isfinite(p).all() and np.isfinite(q).all()), "finite samples", "NaN or infinity", "repair the sampler")
    mean, scale = p.mean(axis=0), p.std(axis=0, ddof=1)
    require(bool((scale > 0).all()), "a reference that varies", f"constant component {int(np.argmin(scale))}", "drop that component")
    hidden = (10 * p.shape[1],) * 2
    network = MLPClassifier(activation="relu", hidden_layer_sizes=hidden, max_iter=10000, solver="adam", random_state=seed)
    data = (np.concatenate([p, q]) - mean) / scale
    label = np.repeat([0, 1], [len(p), len(q)])
    splits = KFold(n_splits=folds, shuffle=True, random_state=seed)
    jobs = -1 if data.size > FEW else 1  # a process for each fold; the result is the same
    with threadpool_limits(1, "blas"):  # on matrices this small threads wait for each other
        return float(cross_val_score(network, data, label, cv=splits, scoring="accuracy", n_jobs=jobs).mean())
