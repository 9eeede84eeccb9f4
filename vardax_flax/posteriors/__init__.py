"""Posteriors a user asks: p(x | y)."""

from vardax_flax.posteriors.amortized import AmortizedConfig, AmortizedPosterior
from vardax_flax.posteriors.calls import Amortized
from vardax_flax.posteriors.ensemble import EnsemblePosterior
from vardax_flax.posteriors.spaces import UnconstrainedEncoder, coordinates, from_unconstrained, to_unconstrained

__all__ = [
    "Amortized",
    "AmortizedConfig",
    "AmortizedPosterior",
    "EnsemblePosterior",
    "UnconstrainedEncoder",
    "coordinates",
    "from_unconstrained",
    "to_unconstrained",
]
