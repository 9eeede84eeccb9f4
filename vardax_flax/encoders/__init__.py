"""(input, mask[, background]) → context vector."""

from vardax_flax.encoders.conv import Conv1DEncoderConfig, Conv2DEncoderConfig, ConvEncoder
from vardax_flax.encoders.innovation import InnovationEncoder, InnovationEncoderConfig
from vardax_flax.encoders.inputs import Inputs
from vardax_flax.encoders.vector import IdentityEncoder, IdentityEncoderConfig, MLPEncoder, MLPEncoderConfig

EncoderConfig = IdentityEncoderConfig | MLPEncoderConfig | Conv1DEncoderConfig | Conv2DEncoderConfig | InnovationEncoderConfig
ENCODERS = {
    config.kind: config
    for config in (IdentityEncoderConfig, MLPEncoderConfig, Conv1DEncoderConfig, Conv2DEncoderConfig, InnovationEncoderConfig)
}

__all__ = [
    "ENCODERS",
    "Conv1DEncoderConfig",
    "Conv2DEncoderConfig",
    "ConvEncoder",
    "EncoderConfig",
    "IdentityEncoder",
    "IdentityEncoderConfig",
    "InnovationEncoder",
    "InnovationEncoderConfig",
    "Inputs",
    "MLPEncoder",
    "MLPEncoderConfig",
]
