"""Conditional bijections between a state and standard normal noise. forward: x → z; inverse: z → x."""

from vardax_flax.flows.gaussian import ConditionalGaussian
from vardax_flax.flows.spline import SplineCoupling
from vardax_flax.flows.stack import FlowStack

FAMILIES = {"spline": SplineCoupling}

__all__ = ["FAMILIES", "ConditionalGaussian", "FlowStack", "SplineCoupling"]
