"""An epidemic in a closed population, seen through ten samples of a thousand people."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import LogJoint, MarginalPrior
from vardax_flax.ops.integrate import rk4_trajectory
from vardax_flax.simulators.observe import fully_observed
from vardax_flax.simulators.priors import LogNormal

POPULATION, INFECTED = 1e6, 1.0
TRIALS = 1000
DAYS, TIMES = 17, 10  # between two samples; number of samples
SUBSTEPS = 68  # a quarter of a day: the fastest epidemic of the prior doubles within the day
PRIOR = LogNormal((math.log(0.4), math.log(0.125)), (0.5, 0.2))


@dataclasses.dataclass(frozen=True)
class SIR(LogJoint, MarginalPrior):
    """Susceptible, infected, recovered: dS = −β S I / N, dI = β S I / N − γ I; x_k ~ Binomial(1000, I(t_k) / N).

    N = 10⁶, I(0) = 1, t_k = 0, 17, …, 153 days; β ~ LogNormal(log 0.4, 0.5), γ ~ LogNormal(log 0.125, 0.2) per day
    (Kermack & McKendrick 1927; Lueckmann et al. 2021, T.9). Integrated in shares s, log i of the population by RK4.

    Target (β, γ) `(2,)` per day, input counts `(10,)`; all is observed.

    Example:
        >>> SIR().infected(jnp.array([0.4, 0.125])).shape
        (10,)
    """

    kind: ClassVar[str] = "sir"

    @property
    def prior(self) -> LogNormal:
        return PRIOR

    def infected(self, theta: jax.Array) -> jax.Array:
        """I(t_k) / N `(10,)`."""
        beta, gamma = theta[0], theta[1]

        def tendency(state: jax.Array) -> jax.Array:
            susceptible, log_infected = state
            return jnp.stack([-beta * susceptible * jnp.exp(log_infected), beta * susceptible - gamma])

        start = jnp.asarray([1 - INFECTED / POPULATION, math.log(INFECTED / POPULATION)], theta.dtype)
        states = rk4_trajectory(tendency, start, DAYS / SUBSTEPS, SUBSTEPS * (TIMES - 1), save_every=SUBSTEPS)
        return jnp.exp(states[:, 1])

    def sample(self, key: jax.Array) -> Batch:
        key_theta, key_count = jax.random.split(key)
        theta = self.prior.sample(key_theta)
        share = jnp.clip(self.infected(theta), 0, 1)
        return fully_observed(jax.random.binomial(key_count, TRIALS, share, dtype=theta.dtype), theta)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return self.prior.log_prob(x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        """Σ log Binomial(x_k; 1000, I(t_k) / N)."""
        count = element.input
        tiny = jnp.finfo(count.dtype).tiny
        share = jnp.clip(self.infected(x), tiny, 1 - jnp.finfo(count.dtype).eps)
        ways = gammaln(TRIALS + 1.0) - gammaln(count + 1) - gammaln(TRIALS - count + 1)
        return (ways + count * jnp.log(share) + (TRIALS - count) * jnp.log1p(-share)).sum()
