"""(input, mask[, background]) → context vector."""

from vardax_flax.encoders.analysis import AnalysisEncoder, AnalysisEncoderConfig
from vardax_flax.encoders.control import ControlEncoder, ControlEncoderConfig
from vardax_flax.encoders.conv import Conv1DEncoderConfig, Conv2DEncoderConfig, ConvEncoder
from vardax_flax.encoders.experts import ProductOfExpertsEncoder, ProductOfExpertsEncoderConfig
from vardax_flax.encoders.innovation import InnovationEncoder, InnovationEncoderConfig
from vardax_flax.encoders.inputs import Inputs
from vardax_flax.encoders.series import TimeSeriesEncoder, TimeSeriesEncoderConfig
from vardax_flax.encoders.set import SetEncoder, SetEncoderConfig
from vardax_flax.encoders.vector import IdentityEncoder, IdentityEncoderConfig, MLPEncoder, MLPEncoderConfig

EncoderConfig = (
    IdentityEncoderConfig
    | MLPEncoderConfig
    | Conv1DEncoderConfig
    | Conv2DEncoderConfig
    | SetEncoderConfig
    | TimeSeriesEncoderConfig
    | ProductOfExpertsEncoderConfig
    | InnovationEncoderConfig
    | AnalysisEncoderConfig
    | ControlEncoderConfig
)
ENCODERS = {config.kind: config for config in EncoderConfig.__args__}

__all__ = [
    "ENCODERS",
    "AnalysisEncoder",
    "AnalysisEncoderConfig",
    "ControlEncoder",
    "ControlEncoderConfig",
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
    "ProductOfExpertsEncoder",
    "ProductOfExpertsEncoderConfig",
    "SetEncoder",
    "SetEncoderConfig",
    "TimeSeriesEncoder",
    "TimeSeriesEncoderConfig",
]
