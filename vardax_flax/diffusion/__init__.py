"""Noise processes, and the draws and densities of a velocity. What is noised, and which network knows the velocity, a head decides."""

from vardax_flax.diffusion.density import LogProb, log_prob, weight
from vardax_flax.diffusion.guidance import Spread, guide
from vardax_flax.diffusion.processes import (
    EDM,
    PROCESSES,
    FlowMatching,
    NoiseProcess,
    Process,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from vardax_flax.diffusion.samplers import SAMPLERS, STEPS, Sampler, base_mean, denoised

__all__ = [
    "EDM",
    "PROCESSES",
    "SAMPLERS",
    "STEPS",
    "FlowMatching",
    "LogProb",
    "NoiseProcess",
    "Process",
    "Sampler",
    "Spread",
    "SubVariancePreserving",
    "VarianceExploding",
    "VariancePreserving",
    "base_mean",
    "denoised",
    "guide",
    "log_prob",
    "weight",
]
