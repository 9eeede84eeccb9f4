"""context → distribution over a flat state, or a state."""

from vardax_flax.heads.flow import ConditionalFlowHead, FlowHeadConfig
from vardax_flax.heads.guidance import guided_sample
from vardax_flax.heads.point import PointHead, PointHeadConfig
from vardax_flax.heads.quantile import QuantileHead, QuantileHeadConfig
from vardax_flax.heads.regression import RegressionHead, RegressionHeadConfig
from vardax_flax.heads.score import ScoreDiffusionHead, ScoreHeadConfig

HeadConfig = RegressionHeadConfig | FlowHeadConfig | ScoreHeadConfig | QuantileHeadConfig | PointHeadConfig
HEADS = {config.kind: config for config in HeadConfig.__args__}

__all__ = [
    "HEADS",
    "ConditionalFlowHead",
    "FlowHeadConfig",
    "HeadConfig",
    "PointHead",
    "PointHeadConfig",
    "QuantileHead",
    "QuantileHeadConfig",
    "RegressionHead",
    "RegressionHeadConfig",
    "ScoreDiffusionHead",
    "ScoreHeadConfig",
    "guided_sample",
]
