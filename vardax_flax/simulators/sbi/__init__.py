"""The ten tasks of a public benchmark of simulation-based inference (Lueckmann et al. 2021); `gaussian_linear` is a `LinearGaussian`."""

from __future__ import annotations

from vardax_flax.simulators.sbi.bernoulli_glm import BernoulliGLM, BernoulliGLMRaw
from vardax_flax.simulators.sbi.epidemic import SIR
from vardax_flax.simulators.sbi.gaussian import GaussianLinearUniform, GaussianMixture
from vardax_flax.simulators.sbi.lotka_volterra import LotkaVolterra
from vardax_flax.simulators.sbi.slcp import SLCP, SLCPDistractors
from vardax_flax.simulators.sbi.two_moons import TwoMoons

__all__ = [
    "SIR",
    "SLCP",
    "BernoulliGLM",
    "BernoulliGLMRaw",
    "GaussianLinearUniform",
    "GaussianMixture",
    "LotkaVolterra",
    "SLCPDistractors",
    "TwoMoons",
]
