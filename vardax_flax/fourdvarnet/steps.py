"""Losses and single steps by their usual names, for a loop of one's own; `vardax_flax.fit` is the loop that is fast and can be resumed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Estimator, Key
from vardax_flax.fourdvarnet.model import FourDVarNet


def _need_target(batch: Batch) -> None:
    if batch.target is None:
        raise ValueError("expected `target` in a batch to learn from, got None; do simulate Batch(..., target=x)")


def reconstruction_loss(x: jax.Array, target: jax.Array) -> jax.Array:
    """Mean of (x − target)², in the square of their units.

    Example:
        >>> float(reconstruction_loss(jnp.zeros(4), jnp.ones(4)))
        1.0
    """
    return jnp.square(x - target).mean()


def train_loss_fn(model: FourDVarNet, batch: Batch, key: Key) -> jax.Array:
    """The training loss of a solver, `SolverLoss` of its configuration.

    Raises:
        ValueError: the batch has no target.
    """
    _need_target(batch)
    return model.loss(batch, key)[0]


@nnx.jit
def _step(model: Any, optimizer: nnx.Optimizer, batch: Batch, key: Key) -> jax.Array:
    loss, gradient = nnx.value_and_grad(lambda model: model.loss(batch, key)[0])(model)
    optimizer.update(model, gradient)
    return loss


def train_step(model: FourDVarNet, optimizer: nnx.Optimizer, batch: Batch, key: Key) -> jax.Array:
    """One step of an optimiser on a solver, in place; returns the loss before it.

    Raises:
        ValueError: the batch has no target.

    Example:
        >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        >>> loss = train_step(model, optimizer, batch, jax.random.key(0))
    """
    _need_target(batch)
    return _step(model, optimizer, batch, key)


@nnx.jit
def _evaluate(model: FourDVarNet, batch: Batch) -> dict[str, jax.Array]:
    return {"mse": reconstruction_loss(model(batch), batch.target), "cost": model.solve(batch).cost.mean()}


def eval_step(model: FourDVarNet, batch: Batch) -> dict[str, jax.Array]:
    """Mean square error of the analysis, in the square of the state's units, and the mean inner cost where the descent ends.

    Raises:
        ValueError: the batch has no target.
    """
    _need_target(batch)
    return _evaluate(model, batch)


def amortized_nll_loss_fn(posterior: Estimator, batch: Batch, key: Key) -> jax.Array:
    """The training loss of an amortized posterior, −log q(x | y) in nats for a head with a density.

    Raises:
        ValueError: the batch has no target.
    """
    _need_target(batch)
    return posterior.loss(batch, key)[0]


def amortized_train_step(posterior: Estimator, optimizer: nnx.Optimizer, batch: Batch, key: Key) -> jax.Array:
    """One step of an optimiser on an amortized posterior, in place; returns the loss before it.

    Raises:
        ValueError: the batch has no target.
    """
    _need_target(batch)
    return _step(posterior, optimizer, batch, key)
