"""Priors of the learned solver: operators φ that leave likely states as they are, so that ‖x − φ(x)‖² is a cost.

All act on standardised states `(*batch, *state)`; the convolutional ones on any size along the grid.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Simulator, Stepping
from vardax_flax.fourdvarnet.layout import Layout
from vardax_flax.nn import ConvNet, Standardizer, UNet, UNetConfig
from vardax_flax.nn.conv import GridConv


class Prior(nnx.Module, abc.ABC):
    """Interface of φ; `free` where a state may be of another size along the grid than the one it was built for."""

    free: bool = True

    @abc.abstractmethod
    def __call__(self, x: jax.Array) -> jax.Array:
        """φ(x), of the shape of x."""


class IdentityPrior(Prior):
    """φ(x) = x: no prior at all."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class BilinearPrior(Prior):
    """φ(x) = D [A h, (B h) ∘ (C h)], h = silu(E x), with convolutions E, A, B, C, D: products like those of a quadratic dynamical model.

    Reference: Fablet, Ouala & Herzet 2018, *Bilinear residual neural network for the identification and forecasting of dynamical systems*.

    Args:
        layout: of the state.
        latent: channels of h, and of each part.
        kernel_size: of E and D; A, B, C act on each point.

    Example:
        >>> phi = BilinearPrior(Layout((15, 64, 64), "space", periodic=False), 32, 3, rngs=nnx.Rngs(0))
        >>> phi(jnp.zeros((4, 15, 64, 64))).shape
        (4, 15, 64, 64)
    """

    def __init__(self, layout: Layout, latent: int, kernel_size: int, *, rngs: nnx.Rngs) -> None:
        self.layout = layout
        rank = len(layout.grid)
        self.enter = GridConv(rank, layout.channels, latent, kernel_size, layout.padding, rngs=rngs)
        self.parts = nnx.Linear(latent, 3 * latent, rngs=rngs)
        self.leave = GridConv(rank, 2 * latent, layout.channels, kernel_size, layout.padding, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        linear, left, right = jnp.split(self.parts(nnx.silu(self.enter(self.layout.to_grid(x)))), 3, axis=-1)
        return self.layout.from_grid(self.leave(jnp.concatenate([linear, left * right], axis=-1)))


class DensePrior(Prior):
    """φ(x) = D g(x) of the whole state as one vector, g a layer of `latent` numbers: bilinear, or a network with one hidden layer.

    For small states: at 15 × 64 × 64 and 32 numbers it has millions of parameters, where a convolution has thousands.

    Args:
        layout: of the state.
        latent: numbers between.
        bilinear: [A x, (B x) ∘ (C x)] for g, else a silu network with a hidden layer of four times as many.
    """

    free = False

    def __init__(self, layout: Layout, latent: int, bilinear: bool, *, rngs: nnx.Rngs) -> None:
        self.layout, self.bilinear = layout, bilinear
        size, hidden = math.prod(layout.state), 4 * latent
        self.enter = nnx.Linear(size, 3 * latent if bilinear else hidden, rngs=rngs)
        self.between = None if bilinear else nnx.Linear(hidden, latent, rngs=rngs)
        self.leave = nnx.Linear(2 * latent if bilinear else latent, size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.enter(x.reshape(*x.shape[: self.layout.lead(x)], -1))
        if self.between is None:
            linear, left, right = jnp.split(h, 3, axis=-1)
            return self.leave(jnp.concatenate([linear, left * right], axis=-1)).reshape(x.shape)
        return self.leave(self.between(nnx.silu(h))).reshape(x.shape)


class ConvPrior(Prior):
    """φ(x) = D net(x): residual convolutions to `latent` channels, and back at each point."""

    def __init__(self, layout: Layout, latent: int, depth: int, kernel_size: int, *, rngs: nnx.Rngs) -> None:
        self.layout = layout
        sizes: dict[str, Any] = {"in_features": layout.channels, "channels": latent, "depth": depth, "kernel_size": kernel_size}
        self.net = ConvNet(len(layout.grid), **sizes, padding=layout.padding, rngs=rngs)
        self.leave = nnx.Linear(latent, layout.channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layout.from_grid(self.leave(self.net(self.layout.to_grid(x))))


class UNetPrior(Prior):
    """φ(x) = x + UNet(x), which starts as the identity."""

    free = False

    def __init__(self, layout: Layout, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        self.layout = layout
        self.net = UNet(config, in_features=layout.channels, out_features=layout.channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.layout.from_grid(self.net(self.layout.to_grid(x)))


class DynamicalPrior(Prior):
    """φ(x)_t = M(x_{t−1}), φ(x)_0 = x_0: the known model, so that x − φ(x) is its error in each step.

    Args:
        step: M, one state `(n,)` → the next, in physical units.
        scale: what standardises states.
    """

    def __init__(self, step: Callable[[jax.Array], jax.Array], scale: Standardizer) -> None:
        self.step = step
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        ahead = jnp.vectorize(self.step, signature="(n)->(n)")(self.scale.inverse(x[..., :-1, :]))
        return jnp.concatenate([x[..., :1, :], self.scale(ahead)], axis=-2)


def _positive(config: Any) -> None:
    sizes = [value for value in dataclasses.asdict(config).values() if type(value) is int]
    require(min(sizes) > 0, "positive sizes", config, "pass positive sizes")


@dataclasses.dataclass(frozen=True)
class IdentityPriorConfig:
    """No prior."""

    kind: ClassVar[str] = "identity"

    def build(self, layout: Layout, scale: Standardizer, simulator: Simulator | None, rngs: nnx.Rngs) -> Prior:
        """φ for states of this layout."""
        return IdentityPrior()


@dataclasses.dataclass(frozen=True)
class BilinearPriorConfig:
    """A bilinear auto-encoder, convolutional or of the state as one vector (`dense`)."""

    kind: ClassVar[str] = "bilinear"
    latent: int = 32
    kernel_size: int = 3
    dense: bool = False

    def __post_init__(self) -> None:
        _positive(self)

    def build(self, layout: Layout, scale: Standardizer, simulator: Simulator | None, rngs: nnx.Rngs) -> Prior:
        """φ for states of this layout."""
        if self.dense:
            return DensePrior(layout, self.latent, True, rngs=rngs)
        return BilinearPrior(layout, self.latent, self.kernel_size, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class MLPPriorConfig:
    """An auto-encoder of the state as one vector."""

    kind: ClassVar[str] = "mlp"
    latent: int = 32

    def __post_init__(self) -> None:
        _positive(self)

    def build(self, layout: Layout, scale: Standardizer, simulator: Simulator | None, rngs: nnx.Rngs) -> Prior:
        """φ for states of this layout."""
        return DensePrior(layout, self.latent, False, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class ConvPriorConfig:
    """A convolutional auto-encoder."""

    kind: ClassVar[str] = "conv"
    latent: int = 32
    depth: int = 1
    kernel_size: int = 3

    def __post_init__(self) -> None:
        _positive(self)

    def build(self, layout: Layout, scale: Standardizer, simulator: Simulator | None, rngs: nnx.Rngs) -> Prior:
        """φ for states of this layout."""
        return ConvPrior(layout, self.latent, self.depth, self.kernel_size, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class UNetPriorConfig:
    """A U-Net of these channels at each resolution, around the identity; periodic or not in all axes."""

    kind: ClassVar[str] = "unet"
    channels: tuple[int, ...] = (16, 32)
    depth: tuple[int, ...] = (1, 1)

    def build(self, layout: Layout, scale: Standardizer, simulator: Simulator | None, rngs: nnx.Rngs) -> Prior:
        """φ for states of this layout."""
        kinds = set(layout.padding)
        require(len(kinds) == 1, "axes that are all periodic or all not, for a U-Net", layout.padding, 'pick axes="space" or "time"')
        grid = tuple(layout.state[axis] for axis in layout.grid)
        config = UNetConfig(grid=grid, channels=self.channels, depth=self.depth, periodic=kinds == {"CIRCULAR"})
        return UNetPrior(layout, config, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class DynamicalPriorConfig:
    """The model of a `Stepping` simulator."""

    kind: ClassVar[str] = "dynamical"

    def build(self, layout: Layout, scale: Standardizer, simulator: Simulator | None, rngs: nnx.Rngs) -> Prior:
        """φ for states of this layout.

        Raises:
            ConfigError: the simulator is none, or the state is no series of vectors.
        """
        got = getattr(simulator, "kind", None)
        require(isinstance(simulator, Stepping), "a `Stepping` simulator for the dynamical prior", got, "pick another prior")
        assert isinstance(simulator, Stepping)
        require(len(layout.state) == 2, "a state (time, sites) for the dynamical prior", layout.state, "pick another prior")
        return DynamicalPrior(simulator.step, scale)


PriorConfig = BilinearPriorConfig | ConvPriorConfig | MLPPriorConfig | UNetPriorConfig | DynamicalPriorConfig | IdentityPriorConfig
