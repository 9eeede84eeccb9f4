"""Parameterised blocks that know no inference."""

from vardax_flax.nn.attention import AttentionPool, MeanPool
from vardax_flax.nn.conv import ConvNet, pool_grid
from vardax_flax.nn.init import initialise
from vardax_flax.nn.masked import MaskedConditioner
from vardax_flax.nn.mlp import Conditioner, ResidualMLP, soft_clip
from vardax_flax.nn.recurrent import BidirectionalGRU
from vardax_flax.nn.stack import make_stack, scan_stack
from vardax_flax.nn.standardize import Standardizer, Statistic
from vardax_flax.nn.time import TimedMLP, time_features
from vardax_flax.nn.unet import FieldNet, UNet, UNetConfig

__all__ = [
    "AttentionPool",
    "BidirectionalGRU",
    "Conditioner",
    "ConvNet",
    "FieldNet",
    "MaskedConditioner",
    "MeanPool",
    "ResidualMLP",
    "Standardizer",
    "Statistic",
    "TimedMLP",
    "UNet",
    "UNetConfig",
    "initialise",
    "make_stack",
    "pool_grid",
    "scan_stack",
    "soft_clip",
    "time_features",
]
