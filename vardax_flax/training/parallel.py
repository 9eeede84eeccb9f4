"""Per-device mapped data parallelism. This is the only file that knows a device axis.

One program runs on every device over its own rows of the global batch, with the state replicated: materialise the payload, take the
gradient of the mean loss of these rows, average gradients over the axis, step. Several steps run in one dispatch, as a while loop with a
dynamic number of steps, so that one compiled program serves every chunk and a resumed run executes the very code of an uninterrupted one.

`shard_map` is used with `check_vma=False`: a simulator of the user may scan from constant carries, which the varying-axes check refuses.
Without that check the gradient of the *local* loss is local and must be averaged, which is what `pmean` below does (with the check on,
averaging gradients would be wrong by the number of devices). The test "gradient on 1 device = gradient on N" stands guard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.training.state import TrainState, merge

AXIS = "data"
Metrics = dict[str, jax.Array]


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes of the job (or those given) on one axis."""
    chosen = sorted(jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(chosen), (AXIS,))


def process_rows(batch_size: int, mesh: Mesh) -> slice:
    """The rows of a global batch that this process feeds to its devices."""
    require(
        batch_size % mesh.size == 0, f"a batch size divisible by {mesh.size} devices", batch_size, f"pass a multiple of {mesh.size}"
    )
    mine = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    per_device = batch_size // mesh.size
    return slice(mine[0] * per_device, (mine[-1] + 1) * per_device)


def first_process(function: Callable[[], object]) -> None:
    """Run something once for the whole job, on its first process; the others wait, and give up with it.

    Raises:
        ConfigError: on the other processes, where the first one failed; there its own error is raised.
    """
    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            function()
        except Exception as caught:
            error = caught
    failed = anywhere(error is not None)
    if error is not None:
        raise error
    require(not failed, "the first process to succeed", "a failure there", "see its error")


def anywhere(flag: bool) -> bool:
    """Whether a flag is set on any process of the job; every process must ask at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same value on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(tree: Any, mesh: Mesh, axis: int = 1) -> Any:
    """Place process-local numpy arrays so that `axis` is split over the devices."""
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, AXIS))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def local_gradient(
    graphdef: nnx.GraphDef, state: TrainState, batch: Batch, key: jax.Array, tree: Callable[[Any], Any] = lambda params: params
) -> tuple[jax.Array, Metrics, Any]:
    """Loss, diagnostics and gradient over the rows of all devices; to be called inside the mapped program.

    `tree` makes the parameters of the module from those of the state, with respect to which the gradient is taken.
    """

    def loss_fn(params: Any) -> tuple[jax.Array, Metrics]:
        return merge(graphdef, tree(params), state.statistics).loss(batch, jax.random.fold_in(key, jax.lax.axis_index(AXIS)))

    (loss, diagnostics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    loss, diagnostics, gradient = jax.lax.pmean((loss, diagnostics, gradient), AXIS)
    return loss, diagnostics, gradient


KEPT = ("statistics", "best_params", "best_loss", "best_step", "bad_evals")  # of the state, what no step changes


class _Vectors:
    """Trees of the parameters' structure as one vector each, and back. Parameters of several types stay as they are.

    Args:
        params: the parameters.
    """

    def __init__(self, params: Any) -> None:
        self._structure: Any = jax.tree.structure(params)
        self._one_type = len({leaf.dtype for leaf in jax.tree.leaves(params)}) == 1
        self.tree: Callable[[Any], Any] = ravel_pytree(params)[1] if self._one_type else lambda tree: tree

    def _alike(self, node: Any) -> bool:
        return self._one_type and bool(jax.tree.structure(node) == self._structure)

    def pack(self, whole: Any) -> Any:
        """A tree with each tree of that structure in it made a vector."""
        return jax.tree.map(lambda node: ravel_pytree(node)[0] if self._alike(node) else node, whole, is_leaf=self._alike)

    def unpack(self, packed: Any, like: Any) -> Any:
        """The tree of `like` from what `pack` made of such a tree."""
        return jax.tree.map(lambda node, leaf: self.tree(leaf) if self._alike(node) else leaf, like, packed, is_leaf=self._alike)


def _make_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, seed: int, ema_decay: float) -> Callable[..., Any]:
    """One step on the rows of all devices: `(state, batch, tree) → state, metrics`, `tree` as in `local_gradient`."""

    def step(state: TrainState, batch: Batch, tree: Callable[[Any], Any]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, diagnostics, gradient = local_gradient(graphdef, state, batch, key, tree)
        norm = optax.tree.norm(gradient)
        ok = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # a warm-up of the average: without it the first evaluations would see the initial weights
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, state.ema, params)
        new = state._replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
        state = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)._replace(ok=ok)
        return state, {"loss": loss, "grad_norm": norm, **diagnostics}

    return step


@functools.lru_cache(maxsize=8)
def make_train_chunk(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    materialize: Callable[[Any], Batch],
    mesh: Mesh,
    *,
    seed: int,
    ema_decay: float,
) -> Callable[[TrainState, Any, Any, Any], tuple[TrainState, Metrics]]:
    """Build `chunk(state, payload, start, n) -> (state, sums)`: steps `start … start + n` in one dispatch, the state donated.

    `payload` has axes `(steps, rows, …)`, rows split over devices. A step with a loss or gradient that is not finite leaves the state as
    it was, sets `ok` to False and ends the chunk; later chunks then do nothing, so the host may look late without harm.
    Inside a chunk the parameters, and all that has their shape, are one vector each: one operation and one message between devices where
    there would be one for each layer.
    """

    step = _make_step(graphdef, optimizer, seed, ema_decay)

    def chunk(whole: TrainState, payload: Any, start: jax.Array, n: jax.Array) -> tuple[TrainState, Metrics]:
        vectors = _Vectors(whole.params)
        kept = {name: getattr(whole, name) for name in KEPT}
        none: Any = dict.fromkeys(KEPT)

        @functools.partial(jax.jit, inline=True)  # traced once, for the shapes of its metrics and for the loop
        def one(state: TrainState, kept: dict[str, Any], row: Any) -> tuple[TrainState, Metrics]:
            state, metrics = step(state._replace(**kept), materialize(row), vectors.tree)
            return state._replace(**none), metrics

        def at(i: jax.Array) -> Any:
            return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), payload)

        def run(carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, sums = carry
            state, metrics = one(state, kept, at(state.step - start))
            return state, jax.tree.map(jnp.add, sums, metrics)

        def more(carry: tuple[TrainState, Metrics]) -> jax.Array:
            i = carry[0].step - start
            return carry[0].ok & (i >= 0) & (i < n)

        changing = whole._replace(**none)
        state = vectors.pack(changing)
        shapes = jax.eval_shape(one, state, kept, jax.eval_shape(at, start))[1]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        state, sums = jax.lax.while_loop(more, run, (state, zeros))
        return vectors.unpack(state, changing)._replace(**kept), sums

    mapped = jax.shard_map(
        chunk,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, AXIS), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


@functools.lru_cache(maxsize=8)
def make_evaluation(graphdef: nnx.GraphDef, mesh: Mesh, *, seed: int) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """Build `evaluate(state, held_out) -> (state, loss)`: held-out loss of the averaged parameters, and the best so far kept.

    `held_out` has axes `(blocks, rows, …)`; blocks are evaluated one after the other, so memory is that of one training batch.
    """

    def evaluate(state: TrainState, held_out: Batch) -> tuple[TrainState, jax.Array]:
        model = merge(graphdef, state.ema, state.statistics)
        key = jax.random.fold_in(jax.random.key(seed), jax.lax.axis_index(AXIS))
        losses = jax.lax.map(lambda batch: model.loss(batch, key)[0], held_out)
        loss = jax.lax.pmean(losses.mean(), AXIS)
        better = loss < state.best_loss
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), state.ema, state.best_params)
        state = state._replace(
            best_params=best,
            best_loss=jnp.where(better, loss, state.best_loss),
            best_step=jnp.where(better, state.step, state.best_step),
            bad_evals=jnp.where(better, 0, state.bad_evals + 1),
        )
        return state, loss

    mapped = jax.shard_map(
        evaluate, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(None, AXIS)), out_specs=PartitionSpec(), check_vma=False
    )
    return jax.jit(mapped, donate_argnums=0)
