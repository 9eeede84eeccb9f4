"""Where data come from: one file per system. A new simulator is one new file and one line in the union below."""

from __future__ import annotations

import typing

from vardax_flax.core.interfaces import Simulator
from vardax_flax.simulators.distilled import Distilled
from vardax_flax.simulators.from_functions import FromFunctions, FromFunctionsLogJoint, from_functions
from vardax_flax.simulators.gp_sites import GaussianSites
from vardax_flax.simulators.linear_gaussian import LinearGaussian
from vardax_flax.simulators.lorenz63 import Lorenz63, Lorenz63Climatology
from vardax_flax.simulators.lorenz96 import Lorenz96, Lorenz96Climatology
from vardax_flax.simulators.lorenz96_two_level import Lorenz96TwoLevel
from vardax_flax.simulators.priors import LogNormal, Normal, Product, Uniform
from vardax_flax.simulators.qg2d import QG2D
from vardax_flax.simulators.sbi import (
    SIR,
    SLCP,
    BernoulliGLM,
    BernoulliGLMRaw,
    GaussianLinearUniform,
    GaussianMixture,
    LotkaVolterra,
    SLCPDistractors,
    TwoMoons,
)
from vardax_flax.simulators.tracks2d import Tracks2D
from vardax_flax.simulators.trajectory import Lorenz63Trajectory, Lorenz96Trajectory, Trajectory
from vardax_flax.simulators.window import BackgroundWindow, ClimatologyWindow, Window

SbiTask = (
    TwoMoons
    | GaussianLinearUniform
    | GaussianMixture
    | SLCP
    | SLCPDistractors
    | BernoulliGLM
    | BernoulliGLMRaw
    | SIR
    | LotkaVolterra
)
SimulatorConfig = (
    LinearGaussian
    | GaussianSites
    | Lorenz63
    | Lorenz63Climatology
    | Lorenz96
    | Lorenz96Climatology
    | Lorenz63Trajectory
    | Lorenz96Trajectory
    | Lorenz96TwoLevel
    | Tracks2D
    | QG2D
    | SbiTask
)
"""Every simulator that can be written as JSON; a user's functions cannot."""

SIMULATORS: dict[str, type[Simulator]] = {cls.kind: cls for cls in typing.get_args(SimulatorConfig)}

__all__ = [
    "QG2D",
    "SIMULATORS",
    "SIR",
    "SLCP",
    "BackgroundWindow",
    "BernoulliGLM",
    "BernoulliGLMRaw",
    "ClimatologyWindow",
    "Distilled",
    "FromFunctions",
    "FromFunctionsLogJoint",
    "GaussianLinearUniform",
    "GaussianMixture",
    "GaussianSites",
    "LinearGaussian",
    "LogNormal",
    "Lorenz63",
    "Lorenz63Climatology",
    "Lorenz96",
    "Lorenz96Climatology",
    "Lorenz63Trajectory",
    "Lorenz96Trajectory",
    "Lorenz96TwoLevel",
    "LotkaVolterra",
    "Normal",
    "Product",
    "SLCPDistractors",
    "SimulatorConfig",
    "Tracks2D",
    "Trajectory",
    "TwoMoons",
    "Uniform",
    "Window",
    "from_functions",
]
