"""context → distribution over a flat state."""

from vardax_flax.heads.flow import ConditionalFlowHead, FlowHeadConfig
from vardax_flax.heads.regression import RegressionHead, RegressionHeadConfig
from vardax_flax.heads.score import ScoreDiffusionHead, ScoreHeadConfig

HeadConfig = RegressionHeadConfig | FlowHeadConfig | ScoreHeadConfig
HEADS = {config.kind: config for config in (RegressionHeadConfig, FlowHeadConfig, ScoreHeadConfig)}

__all__ = [
    "HEADS",
    "ConditionalFlowHead",
    "FlowHeadConfig",
    "HeadConfig",
    "RegressionHead",
    "RegressionHeadConfig",
    "ScoreDiffusionHead",
    "ScoreHeadConfig",
]
