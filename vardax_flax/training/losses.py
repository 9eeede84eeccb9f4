"""Losses and single steps on NNX modules, for notebooks and for code that writes its own loop. `fit` is the fast path."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Estimator, Posterior

Metrics = dict[str, jax.Array]


def _require_target(batch: Batch) -> None:
    if batch.target is None:
        raise ValueError("expected `target` in a training batch, got None; do simulate Batch(..., target=x)")


def train_loss_fn(model: Estimator, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """The model's own loss on a batch, and its diagnostics.

    Raises:
        ValueError: the batch has no target.
    """
    _require_target(batch)
    return model.loss(batch, key)


def amortized_nll_loss_fn(model: Posterior, batch: Batch) -> jax.Array:
    """L = −mean log q(x | y), in nats.

    Args:
        model: a posterior with a density.
        batch: simulations with their target.

    Raises:
        ValueError: the batch has no target.

    Example:
        >>> loss, gradient = nnx.value_and_grad(amortized_nll_loss_fn)(posterior, batch)
    """
    _require_target(batch)
    return -model.log_prob(batch.target, batch).mean()


def reconstruction_loss(model: Any, batch: Batch) -> jax.Array:
    """L = mean ‖x̂(y) − x‖² over batch and components, x̂ the model's point answer `model(batch)`.

    Raises:
        ValueError: the batch has no target.
    """
    _require_target(batch)
    return jax.numpy.square(model(batch) - batch.target).mean()


@nnx.jit
def train_step(model: Estimator, optimizer: nnx.Optimizer, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """One optimiser step of the model's own loss, in place.

    Example:
        >>> optimizer = nnx.Optimizer(posterior, optax.adam(1e-3), wrt=nnx.Param)
        >>> loss, diagnostics = train_step(posterior, optimizer, batch, jax.random.key(0))
    """
    (loss, diagnostics), gradient = nnx.value_and_grad(train_loss_fn, has_aux=True)(model, batch, key)
    optimizer.update(model, gradient)
    return loss, diagnostics


@nnx.jit
def amortized_train_step(model: Any, optimizer: nnx.Optimizer, batch: Batch) -> jax.Array:
    """One optimiser step of `amortized_nll_loss_fn`, in place; returns the loss before the step."""
    loss, gradient = nnx.value_and_grad(amortized_nll_loss_fn)(model, batch)
    optimizer.update(model, gradient)
    return loss


@nnx.jit
def eval_step(model: Estimator, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """The model's own loss on a batch, without a step."""
    return train_loss_fn(model, batch, key)
