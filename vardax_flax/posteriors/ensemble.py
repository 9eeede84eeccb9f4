"""An ensemble of amortized posteriors, trained at once: their uniform mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch, leading_shape
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import DensityHead, Key
from vardax_flax.heads.sampling import element_keys
from vardax_flax.nn import Statistic
from vardax_flax.posteriors.calls import Amortized


class EnsemblePosterior(Amortized):
    """q(x | y) = (1/M) Σ q_m(x | y) of M members that differ in their initial weights alone, trained together by min mean_m −E[log q_m].

    Where data are few, members overfit in different ways and their mixture is both closer to the posterior and less overconfident than any
    of them (Lakshminarayanan, Pritzel & Blundell 2017, *Simple and scalable predictive uncertainty estimation using deep ensembles*;
    Hermans et al. 2022, *A trust crisis in simulation-based inference?*). The loss, a bound on that of the mixture, is one pass vmapped
    over the stacked weights on the same batch with the same key, so each member learns what it would have learned alone, except that the
    gradients of all are clipped by their common norm.

    Args:
        members: posteriors of one structure, whose weights are copied and stacked.

    Raises:
        ConfigError: fewer than two members.

    Example:
        >>> posterior = AmortizedConfig(members=4).build(simulator, nnx.Rngs(0))
        >>> posterior.log_prob(x, batch).shape
        (256,)
    """

    def __init__(self, members: Sequence[Amortized]) -> None:
        require(len(members) > 1, "at least 2 members", len(members), "pass more, or use the posterior itself")
        first = members[0]
        self.spec, self.allow_unobserved, self.increment = first.spec, first.allow_unobserved, first.increment
        self.size = len(members)
        structure, states = nnx.split(first)[0], [nnx.state(member) for member in members]
        self.stack = nnx.merge(structure, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))

    @property
    def head(self) -> Any:
        """The stacked heads: of the kind that every member has."""
        return self.stack.head

    def member(self, index: int) -> Any:
        """A copy of one member, a posterior of its own."""
        structure, state = nnx.split(self.stack)
        return nnx.merge(structure, jax.tree.map(lambda leaf: leaf[index], state))

    def calibrate(self, batch: Batch) -> None:
        """What one member learns of the data before training, all have; what tells them apart is not learned there."""
        member = self.member(0)
        before = jax.tree.leaves(nnx.state(member, Statistic))
        member.calibrate(batch)
        after = jax.tree.leaves(nnx.state(member, Statistic))
        leaves, structure = jax.tree.flatten(nnx.state(self.stack, Statistic))
        learned = [all_ if new is old else jnp.broadcast_to(new, all_.shape) for all_, old, new in zip(leaves, before, after, strict=True)]
        nnx.update(self.stack, jax.tree.unflatten(structure, learned))

    def loss(self, batch: Batch, key: Key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean of the members' losses (with the gradient of their sum), and of their diagnostics."""
        losses, diagnostics = self._each(lambda member: member.loss(batch, key))
        # the gradient is that of the sum: for each member its own, however many they are
        total = losses.sum()
        return total - jax.lax.stop_gradient(total - losses.mean()), jax.tree.map(lambda leaf: leaf.mean(axis=0), diagnostics)

    def traced_mode(self, batch: Batch, key: Key) -> jax.Array:
        """The mode of that member whose mode the mixture finds most probable; of heads without a density, the mean of the answers."""
        axis = len(leading_shape(batch, self.spec))
        modes = jnp.moveaxis(self._each(lambda member: member.traced_mode(batch, key)), 0, axis)
        if not isinstance(self.head, DensityHead):
            return modes.mean(axis=axis)
        best = self.traced_log_prob(modes, batch).argmax(axis=-1)
        return jnp.take_along_axis(modes, self._like_states(best[..., None]), axis=axis).squeeze(axis)

    def traced_sample(self, batch: Batch, key: Key, n: int) -> jax.Array:
        """Independent draws of the mixture: the member of each is drawn first, then the next of that member's own draws is taken."""
        lead = leading_shape(batch, self.spec)
        axis, each = len(lead), _enough(n, self.size)
        keys = jax.vmap(lambda m: jax.random.fold_in(key, m))(jnp.arange(self.size))
        draws = jnp.moveaxis(self._each(lambda member, key: member.traced_sample(batch, key, each), keys), 0, axis)
        places = jax.vmap(lambda key: _places(key, n, self.size, each))(element_keys(lead, jax.random.fold_in(key, self.size)))
        draws = draws.reshape(*lead, self.size * each, *self.state_shape)
        return jnp.take_along_axis(draws, self._like_states(places.reshape(*lead, n)), axis=axis)

    def traced_log_prob(self, x: jax.Array, batch: Batch) -> jax.Array:
        """log of the mean density of the members."""
        values = self._each(lambda member: member.traced_log_prob(x, batch))
        return jax.nn.logsumexp(values, axis=0) - jnp.log(self.size)

    def _each(self, function: Callable[..., Any], *args: Any) -> Any:
        """Over all members, and one more array with an entry for each."""
        structure, state = nnx.split(self.stack)
        return jax.vmap(lambda state, *args: function(nnx.merge(structure, state), *args))(state, *args)

    def _like_states(self, index: jax.Array) -> jax.Array:
        """An index with axes for the state."""
        return index.reshape(*index.shape, *(1,) * len(self.state_shape))


def _enough(n: int, members: int) -> int:
    """Draws of one member that n of the mixture will not exceed: eight standard deviations above their mean number."""
    mean = n / members
    return min(n, math.ceil(mean + 8 * math.sqrt(mean)) + 8)


def _places(key: Key, n: int, members: int, each: int) -> jax.Array:
    """Where each of n draws stands among those of all members, `(n,)`; the first of them whatever n is."""
    # a key for each draw: so that the first are the same whatever n is
    chosen = jax.vmap(lambda j: jax.random.randint(jax.random.fold_in(key, j), (), 0, members, jnp.int32))(jnp.arange(n))
    used = jnp.cumsum(jax.nn.one_hot(chosen, members, dtype=jnp.int32), axis=0)
    return chosen * each + jnp.minimum(jnp.take_along_axis(used, chosen[:, None], axis=1)[:, 0] - 1, each - 1)
