"""Predators and prey, counted ten times with multiplicative noise."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import LogJoint, MarginalPrior
from vardax_flax.ops.integrate import rk4_trajectory
from vardax_flax.simulators.observe import fully_observed, gaussian_log_likelihood
from vardax_flax.simulators.priors import LogNormal

START = (math.log(30.0), 0.0)  # X = 30 prey, Y = 1 predator
TIMES, INTERVAL, SUBSTEPS = 10, 2.1, 210
PRIOR = LogNormal((-0.125, -3.0, -0.125, -3.0), (0.5,) * 4)
NOISE_STD = 0.1


@dataclasses.dataclass(frozen=True)
class LotkaVolterra(LogJoint, MarginalPrior):
    """dX = α X − β X Y, dY = −γ Y + δ X Y; both series at ten times under LogNormal(log ·, 0.1) noise.

    (X, Y)(0) = (30, 1), t = 0, 2.1, …, 18.9; (α, β, γ, δ) ~ LogNormal((−0.125, −3, −0.125, −3), 0.5) per unit of time
    (Lotka 1925; Lueckmann et al. 2021, T.10). Integrated as log X, log Y by RK4, so both stay positive;
    they are not kept from growing or vanishing.

    Target (α, β, γ, δ) `(4,)`; input: the ten X, then the ten Y `(20,)`; all is observed.

    Example:
        >>> LotkaVolterra().predict(jnp.array([0.9, 0.05, 0.9, 0.05])).shape
        (20,)
    """

    kind: ClassVar[str] = "lotka_volterra"

    @property
    def prior(self) -> LogNormal:
        return PRIOR

    def _log_series(self, theta: jax.Array) -> jax.Array:
        alpha, beta, gamma, delta = theta

        def tendency(state: jax.Array) -> jax.Array:
            x, y = jnp.exp(state)
            return jnp.stack([alpha - beta * y, delta * x - gamma])

        start = jnp.asarray(START, theta.dtype)
        return rk4_trajectory(tendency, start, INTERVAL / SUBSTEPS, SUBSTEPS * (TIMES - 1), save_every=SUBSTEPS).T.ravel()

    def predict(self, x: jax.Array) -> jax.Array:
        """Both series without noise `(20,)`."""
        return jnp.exp(self._log_series(x))

    def sample(self, key: jax.Array) -> Batch:
        key_theta, key_noise = jax.random.split(key)
        theta = self.prior.sample(key_theta)
        return fully_observed(jnp.exp(self._log_series(theta) + NOISE_STD * jax.random.normal(key_noise, (2 * TIMES,))), theta)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return self.prior.log_prob(x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        """Σ log LogNormal(xᵢ; log Xᵢ, 0.1)."""
        seen = jnp.log(element.input)
        return gaussian_log_likelihood(seen, element.mask, self._log_series(x), NOISE_STD) - seen.sum()
