"""All that training needs to go on: one pytree, saved whole."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vardax_flax.core.interfaces import Estimator


class TrainState(NamedTuple):
    """The state between two steps. The position in the data is `step`, so there is no state of the stream.

    Args:
        step: optimiser steps done, int32.
        params: trained parameters.
        ema: their exponential moving average, the parameters that are evaluated and handed out.
        opt_state: of the optax optimiser.
        statistics: everything of the module that is not trained (standardisation, permutations).
        best_params, best_loss, best_step: the average with the lowest held-out loss so far.
        bad_evals: evaluations since then.
        ok: False once a loss was not finite; the state is then the last good one.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    statistics: Any
    best_params: Any
    best_loss: jax.Array
    best_step: jax.Array
    bad_evals: jax.Array
    ok: jax.Array


def init_state(estimator: Estimator, optimizer: optax.GradientTransformation) -> tuple[nnx.GraphDef, TrainState]:
    """Split an estimator once: its static structure, and the state training starts from."""
    graphdef, trained, statistics = nnx.split(estimator, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, _start(optimizer, nnx.to_pure_dict(trained), nnx.to_pure_dict(statistics))


@functools.partial(jax.jit, static_argnums=0)
def _start(optimizer: optax.GradientTransformation, params: Any, statistics: Any) -> TrainState:
    """In one program instead of one for each shape."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=params,
        opt_state=optimizer.init(params),
        statistics=statistics,
        best_params=params,
        best_loss=jnp.full((), jnp.inf),
        best_step=jnp.zeros((), jnp.int32),
        bad_evals=jnp.zeros((), jnp.int32),
        ok=jnp.ones((), bool),
    )
    return jax.tree.map(jnp.copy, state)  # donation needs buffers of their own, also where two entries start equal


def merge(graphdef: nnx.GraphDef, params: Any, statistics: Any) -> Any:
    """The module with these parameters; works under a trace."""
    return nnx.merge(graphdef, params, statistics)


def load_into(estimator: Estimator, state: TrainState) -> None:
    """Write the best parameters and the statistics of a state into an estimator; before the first evaluation, the averaged ones.

    The state may be of NumPy arrays, as read from a file; the estimator's are on its device.
    """
    state = jax.tree.map(jnp.asarray, state)
    _, params, statistics = nnx.split(estimator, nnx.Param, ...)  # type: ignore[misc]
    nnx.replace_by_pure_dict(params, state.best_params if bool(jnp.isfinite(state.best_loss)) else state.ema)
    nnx.replace_by_pure_dict(statistics, state.statistics)
    nnx.update(estimator, params, statistics)


def count_parameters(estimator: Estimator) -> int:
    """Number of trained numbers of a module."""
    return int(sum(leaf.size for leaf in jax.tree.leaves(nnx.state(estimator, nnx.Param))))
