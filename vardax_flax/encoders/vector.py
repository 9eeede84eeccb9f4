"""Encoders that see the observation as one vector: identity and residual MLP."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Encoder, Simulator
from vardax_flax.encoders.inputs import Inputs
from vardax_flax.nn import ResidualMLP


class IdentityEncoder(Encoder):
    """context = the standardised (input · mask, mask[, background]) as one vector.

    Args:
        inputs: the standardised views of a batch.

    Example:
        >>> encoder = IdentityEncoderConfig().build(simulator.spec, nnx.Rngs(0))
        >>> encoder(batch).shape
        (256, 4)
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.features = inputs.features

    def calibrate(self, batch: Batch) -> None:
        self.inputs.calibrate(batch)

    def __call__(self, batch: Batch) -> jax.Array:
        return self.inputs.flat(batch)


@dataclasses.dataclass(frozen=True)
class IdentityEncoderConfig:
    """Pass the standardised observation on as it is."""

    kind: ClassVar[str] = "identity"

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> IdentityEncoder:
        """The encoder for elements of these shapes."""
        return IdentityEncoder(Inputs(spec))


class MLPEncoder(Encoder):
    """context = residual MLP of the standardised (input · mask, mask[, background]).

    Args:
        inputs: the standardised views of a batch.
        features: size of the context.
        width, depth: of the residual network.

    Example:
        >>> encoder = MLPEncoderConfig(features=64).build(simulator.spec, nnx.Rngs(0))
        >>> encoder(batch).shape
        (256, 64)
    """

    def __init__(self, inputs: Inputs, features: int, *, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.inputs = inputs
        self.features = features
        self.net = ResidualMLP(inputs.features, features, width=width, depth=depth, rngs=rngs)

    def calibrate(self, batch: Batch) -> None:
        self.inputs.calibrate(batch)

    def __call__(self, batch: Batch) -> jax.Array:
        return self.net(self.inputs.flat(batch))


@dataclasses.dataclass(frozen=True)
class MLPEncoderConfig:
    """Residual, layer-normalised MLP: context size `features`, hidden size `width`, `depth` residual blocks."""

    kind: ClassVar[str] = "mlp"
    features: int = 64
    width: int = 128
    depth: int = 2

    def __post_init__(self) -> None:
        require(min(self.features, self.width) > 0 and self.depth >= 0, "positive sizes", self, "pass positive sizes")

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> MLPEncoder:
        """The encoder for elements of these shapes."""
        return MLPEncoder(Inputs(spec), self.features, width=self.width, depth=self.depth, rngs=rngs)
