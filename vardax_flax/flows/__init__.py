"""Conditional bijections between a state and standard normal noise. forward: x → z; inverse: z → x."""

from vardax_flax.flows.families import FAMILIES, build_flow
from vardax_flax.flows.field import FieldGaussian
from vardax_flax.flows.gaussian import ConditionalGaussian
from vardax_flax.flows.stack import FlowStack

__all__ = ["FAMILIES", "ConditionalGaussian", "FieldGaussian", "FlowStack", "build_flow"]
