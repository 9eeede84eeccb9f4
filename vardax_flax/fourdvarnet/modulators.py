"""Modulators of the learned solver: what makes an update u of the gradient of the inner cost; x ← x − α u.

A modulator is called with `(gradient, x, carry, context)`; the carry is what it remembers from step to step, the context what it has fixed
at the start of a solve. Both are explicit, so that a solver may be differentiated in any way.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.config import require
from vardax_flax.fourdvarnet.layout import Layout
from vardax_flax.nn.conv import GridConv


class Modulator(nnx.Module, abc.ABC):
    """Interface of a modulator of standardised states `(*batch, *state)`."""

    memory_channels: int = 0  # of what it remembers on the grid

    @abc.abstractmethod
    def start(self, gradient: jax.Array, key: jax.Array | None) -> tuple[Any, Any]:
        """First carry, and context, from the gradient at the first state; `key` is for training, None afterwards."""

    @abc.abstractmethod
    def __call__(self, gradient: jax.Array, x: jax.Array, carry: Any, context: Any) -> tuple[jax.Array, Any]:
        """The update, of the shape of x, and the next carry."""

    def memory(self, carry: Any, grid: tuple[int, ...]) -> jax.Array:
        """What it remembers on a grid of these sizes, `(*batch, *grid, memory_channels)`."""
        raise NotImplementedError(f"expected a modulator with a memory, got {type(self).__name__}; do look at memory_channels first")


class IdentityModulator(Modulator):
    """u = ∇J: gradient descent."""

    def start(self, gradient: jax.Array, key: jax.Array | None) -> tuple[Any, Any]:
        return (), ()

    def __call__(self, gradient: jax.Array, x: jax.Array, carry: Any, context: Any) -> tuple[jax.Array, Any]:
        return gradient, carry


class LSTMState(NamedTuple):
    """What a ConvLSTM remembers: output h and cell c, `(*batch, *grid, hidden)`."""

    h: Any
    c: Any


LSTMState1D = LSTMState2D = LSTMState  # of grids of one and two axes


class _Fixed(NamedTuple):
    """Scale of the gradient `(*batch, 1, …)`, and which hidden channels are kept in this solve."""

    scale: Any
    kept: Any


def gradient_scale(gradient: jax.Array, layout: Layout) -> jax.Array:
    """1 / root mean square of a gradient, for each element: with it the first gradient of every problem has unit size.

    A first guess may be a stationary point: what is below a thousandth of a standard deviation is not enlarged further.
    """
    axes = tuple(range(layout.lead(gradient), gradient.ndim))
    return jax.lax.rsqrt(jnp.square(gradient).mean(axis=axes, keepdims=True) + 1e-6)


def scaled(gradient: jax.Array, first: jax.Array, layout: Layout) -> jax.Array:
    """The gradient in units of the larger of the first one and itself, so that its size is never above 1, however small the first was."""
    return gradient * jnp.minimum(first, gradient_scale(gradient, layout))


class ConvLSTMModulator(Modulator):
    """u = O [s ∇J, h] with (h, c) of a convolutional LSTM that reads s ∇J, and x too unless told not to; 1 / s is the size
    of the first gradient or of this one, whichever is larger.

    Reference: Fablet et al. 2021, *Learning variational data assimilation models and solvers*; Shi et al. 2015, *Convolutional LSTM
    network*. O starts at zero, so that an untrained solver returns its first guess.

    Args:
        layout: of the state.
        config: channels, kernel and options.

    Example:
        >>> modulator = ConvLSTMConfig(hidden=32).build(Layout((200, 3), "time", periodic=False), nnx.Rngs(0))
        >>> carry, context = modulator.start(gradient, None)
        >>> update, carry = modulator(gradient, x, carry, context)
    """

    def __init__(self, layout: Layout, config: ConvLSTMConfig, *, rngs: nnx.Rngs) -> None:
        self.layout, self.config = layout, config
        rank, channels = len(layout.grid), layout.channels
        seen = channels * (2 if config.see_state else 1)
        self.memory_channels = config.hidden
        self.gates = GridConv(rank, seen + config.hidden, 4 * config.hidden, config.kernel_size, layout.padding, rngs=rngs)
        zeros: Any = nnx.initializers.zeros_init()
        self.leave = nnx.Linear(channels + config.hidden, channels, kernel_init=zeros, rngs=rngs)

    def start(self, gradient: jax.Array, key: jax.Array | None) -> tuple[LSTMState, _Fixed]:
        grid = self._coarse(self.layout.to_grid(gradient))
        zeros = jnp.zeros((*grid.shape[:-1], self.config.hidden), gradient.dtype)
        scale = gradient_scale(gradient, self.layout) if self.config.normalise else jnp.ones((), gradient.dtype)
        kept = jnp.ones((self.config.hidden,), gradient.dtype)
        if key is not None and self.config.dropout > 0:  # the same channels in all steps of a solve
            keep = 1 - self.config.dropout
            kept = jax.random.bernoulli(key, keep, (*gradient.shape[: self.layout.lead(gradient)], self.config.hidden)) / keep
            kept = kept.reshape(*kept.shape[:-1], *(1,) * len(self.layout.grid), -1).astype(gradient.dtype)
        return LSTMState(zeros, zeros), _Fixed(scale, kept)

    def __call__(self, gradient: jax.Array, x: jax.Array, carry: LSTMState, context: _Fixed) -> tuple[jax.Array, LSTMState]:
        whole = self.layout.to_grid(scaled(gradient, context.scale, self.layout) if self.config.normalise else gradient)
        seen = self._coarse(jnp.concatenate([whole, self.layout.to_grid(x)], axis=-1) if self.config.see_state else whole)
        entry, forget, leave, cell = jnp.split(self.gates(jnp.concatenate([seen, carry.h], axis=-1)), 4, axis=-1)
        c = nnx.sigmoid(forget + 1) * carry.c + nnx.sigmoid(entry) * jnp.tanh(cell)
        h = nnx.sigmoid(leave) * jnp.tanh(c)
        # the memory may be coarse, the gradient stays fine
        fine = self._fine(h * context.kept, whole.shape[-len(self.layout.grid) - 1 : -1])
        return self.layout.from_grid(self.leave(jnp.concatenate([whole, fine], axis=-1))), LSTMState(h, c)

    def memory(self, carry: LSTMState, grid: tuple[int, ...]) -> jax.Array:
        return self._fine(carry.h, grid)

    def _coarse(self, h: jax.Array) -> jax.Array:
        """Averages over blocks of `downsample` points along each axis of the grid; a last block may be short."""
        factor = self.config.downsample
        if factor == 1:
            return h
        rank = len(self.layout.grid)
        lead = h.ndim - rank - 1
        short = [(0, -size % factor) for size in h.shape[lead:-1]]
        h = jnp.pad(h, [(0, 0)] * lead + short + [(0, 0)], mode="edge")
        blocks = [part for size in h.shape[lead:-1] for part in (size // factor, factor)]
        return h.reshape(*h.shape[:lead], *blocks, h.shape[-1]).mean(axis=tuple(lead + 2 * i + 1 for i in range(rank)))

    def _fine(self, h: jax.Array, grid: tuple[int, ...]) -> jax.Array:
        """Each value over its block."""
        lead = h.ndim - len(grid) - 1
        for i, size in enumerate(grid):
            if self.config.downsample > 1:
                h = jnp.repeat(h, self.config.downsample, axis=lead + i)[(slice(None),) * (lead + i) + (slice(size),)]
        return h


class MLPModulator(Modulator):
    """u = net(s ∇J, x) of the channels of each point of the grid: no neighbours, no memory."""

    def __init__(self, layout: Layout, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.layout = layout
        zeros: Any = nnx.initializers.zeros_init()
        self.enter = nnx.Linear(2 * layout.channels, hidden, rngs=rngs)
        self.leave = nnx.Linear(layout.channels + hidden, layout.channels, kernel_init=zeros, rngs=rngs)

    def start(self, gradient: jax.Array, key: jax.Array | None) -> tuple[Any, Any]:
        return (), gradient_scale(gradient, self.layout)

    def __call__(self, gradient: jax.Array, x: jax.Array, carry: Any, context: Any) -> tuple[jax.Array, Any]:
        g = self.layout.to_grid(scaled(gradient, context, self.layout))
        h = nnx.silu(self.enter(jnp.concatenate([g, self.layout.to_grid(x)], axis=-1)))
        return self.layout.from_grid(self.leave(jnp.concatenate([g, h], axis=-1))), carry


class AttentionModulator(Modulator):
    """u = net(attention(s ∇J, x)) between all points of the grid: far neighbours at once, at a cost of their number squared."""

    def __init__(self, layout: Layout, hidden: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.layout = layout
        zeros: Any = nnx.initializers.zeros_init()
        self.enter = nnx.Linear(2 * layout.channels, hidden, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(heads, hidden, decode=False, rngs=rngs)
        self.leave = nnx.Linear(layout.channels + hidden, layout.channels, kernel_init=zeros, rngs=rngs)

    def start(self, gradient: jax.Array, key: jax.Array | None) -> tuple[Any, Any]:
        return (), gradient_scale(gradient, self.layout)

    def __call__(self, gradient: jax.Array, x: jax.Array, carry: Any, context: Any) -> tuple[jax.Array, Any]:
        g = self.layout.to_grid(scaled(gradient, context, self.layout))
        h = self.enter(jnp.concatenate([g, self.layout.to_grid(x)], axis=-1))
        tokens = h.reshape(*h.shape[: self.layout.lead(x)], -1, h.shape[-1])
        h = nnx.silu(h + self.attend(tokens).reshape(h.shape))
        return self.layout.from_grid(self.leave(jnp.concatenate([g, h], axis=-1))), carry


@dataclasses.dataclass(frozen=True)
class IdentityModulatorConfig:
    """Gradient descent."""

    kind: ClassVar[str] = "identity"

    def build(self, layout: Layout, rngs: nnx.Rngs) -> Modulator:
        """The modulator for states of this layout."""
        return IdentityModulator()


@dataclasses.dataclass(frozen=True)
class ConvLSTMConfig:
    """A convolutional LSTM.

    Args:
        hidden: channels of its memory.
        kernel_size: points along each axis.
        normalise: divide gradients by the size of the first one, or by their own where that is larger.
        dropout: share of hidden channels that an update does not see, in training.
        downsample: points along each axis that share one cell of the memory.
        see_state: show it the state beside the gradient.
    """

    kind: ClassVar[str] = "convlstm"
    hidden: int = 64
    kernel_size: int = 3
    normalise: bool = True
    dropout: float = 0.0
    downsample: int = 1
    see_state: bool = True

    def __post_init__(self) -> None:
        require(min(self.hidden, self.kernel_size, self.downsample) > 0, "positive sizes", self, "pass positive sizes")
        require(0 <= self.dropout < 1, "0 <= dropout < 1", self.dropout, "pass such a share")

    def build(self, layout: Layout, rngs: nnx.Rngs) -> Modulator:
        """The modulator for states of this layout."""
        return ConvLSTMModulator(layout, self, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class MLPModulatorConfig:
    """A network of each point."""

    kind: ClassVar[str] = "mlp"
    hidden: int = 64

    def __post_init__(self) -> None:
        require(self.hidden > 0, "hidden > 0", self.hidden, "pass a positive size")

    def build(self, layout: Layout, rngs: nnx.Rngs) -> Modulator:
        """The modulator for states of this layout."""
        return MLPModulator(layout, self.hidden, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class AttentionModulatorConfig:
    """Attention between points."""

    kind: ClassVar[str] = "attention"
    hidden: int = 32
    heads: int = 4

    def __post_init__(self) -> None:
        whole = self.hidden > 0 and self.heads > 0 and self.hidden % max(self.heads, 1) == 0
        require(whole, "hidden as a positive multiple of heads", self, "change one of them")

    def build(self, layout: Layout, rngs: nnx.Rngs) -> Modulator:
        """The modulator for states of this layout."""
        return AttentionModulator(layout, self.hidden, self.heads, rngs=rngs)


ModulatorConfig = ConvLSTMConfig | MLPModulatorConfig | AttentionModulatorConfig | IdentityModulatorConfig
