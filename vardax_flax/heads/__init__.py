"""context → distribution over a flat state."""

from vardax_flax.heads.flow import ConditionalFlowHead, FlowHeadConfig
from vardax_flax.heads.regression import RegressionHead, RegressionHeadConfig

HeadConfig = RegressionHeadConfig | FlowHeadConfig
HEADS = {config.kind: config for config in (RegressionHeadConfig, FlowHeadConfig)}

__all__ = ["HEADS", "ConditionalFlowHead", "FlowHeadConfig", "HeadConfig", "RegressionHead", "RegressionHeadConfig"]
