"""Posteriors a user asks: p(x | y)."""

from vardax_flax.posteriors.amortized import AmortizedConfig, AmortizedPosterior

__all__ = ["AmortizedConfig", "AmortizedPosterior"]
