"""A simulator with its states drawn anew from the exact posterior of what was observed."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Conjugate, ExactDraws, Simulator


@dataclasses.dataclass(frozen=True)
class Distilled(Simulator):
    """(x', y) with y as simulated and x' ~ p(x | y) exactly: the same joint distribution, an oracle in place of the state that made y.

    Training on it distils the oracle (Hinton, Vinyals & Dean 2015, *Distilling the knowledge in a neural network*). As the oracle is exact,
    the mean loss of any model does not change.

    Args:
        simulator: a `Conjugate` one, or one with `ExactDraws`.

    Raises:
        ConfigError: the posterior of the simulator cannot be drawn from.

    Example:
        >>> stream = SeedStream(Distilled(LinearGaussian.random(3, 4)), batch_size=256)
    """

    kind: ClassVar[str] = "distilled"
    simulator: Simulator

    def __post_init__(self) -> None:
        known = isinstance(self.simulator, Conjugate | ExactDraws)
        require(known, "a `Conjugate` simulator, or one with `ExactDraws`", type(self.simulator).__name__, "train on the simulator itself")

    def sample(self, key: jax.Array) -> Batch:
        key_element, key_state = jax.random.split(key)
        element = self.simulator.sample(key_element)
        if isinstance(self.simulator, Conjugate):
            mean, cov = self.simulator.posterior(element)
            x = mean + jnp.linalg.cholesky(cov) @ jax.random.normal(key_state, mean.shape, mean.dtype)
        else:
            assert isinstance(self.simulator, ExactDraws)
            x = self.simulator.posterior_samples(element.input, key_state, 1)[0]
        return element._replace(target=x.reshape(element.target.shape))
