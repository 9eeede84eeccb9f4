"""Two moons: a two-dimensional benchmark whose posterior has two crescents."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import LogJoint, MarginalPrior
from vardax_flax.simulators.observe import fully_observed
from vardax_flax.simulators.priors import Uniform

CENTRE = 0.25
RADIUS_MEAN, RADIUS_STD = 0.1, 0.01
MAX_ROUNDS = 1000


def _arc(key: jax.Array, n: int) -> jax.Array:
    """n points `(n, 2)` on the noisy half circle: a ~ U(−π/2, π/2), r ~ N(0.1, 0.01²), p = (r cos a + ¼, r sin a)."""
    key_angle, key_radius = jax.random.split(key)
    angle = jax.random.uniform(key_angle, (n,), minval=-math.pi / 2, maxval=math.pi / 2)
    radius = RADIUS_MEAN + RADIUS_STD * jax.random.normal(key_radius, (n,))
    return jnp.stack([radius * jnp.cos(angle) + CENTRE, radius * jnp.sin(angle)], axis=-1)


def _shift(theta: jax.Array) -> jax.Array:
    a, b = theta[..., 0], theta[..., 1]
    return jnp.stack([-jnp.abs(a + b), b - a], axis=-1) / math.sqrt(2)


@functools.partial(jax.jit, static_argnums=2)
def _propose(x: jax.Array, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """n proposals of θ `(n, 2)` and whether each is a posterior draw."""
    key_arc, key_sign = jax.random.split(key)
    gap = math.sqrt(2) * (x - _arc(key_arc, n))  # (−|θ₁ + θ₂|, θ₂ − θ₁)
    total = jax.random.rademacher(key_sign, (n,), gap.dtype) * -gap[:, 0]
    theta = jnp.stack([total - gap[:, 1], total + gap[:, 1]], axis=-1) / 2
    return theta, (gap[:, 0] <= 0) & jnp.all(jnp.abs(theta) <= 1, axis=-1)


@dataclasses.dataclass(frozen=True)
class TwoMoons(LogJoint, MarginalPrior):
    """Two moons: a noisy half circle, moved by the parameters in a way that forgets a sign.

    θ ~ U(−1, 1)²; a ~ U(−π/2, π/2), r ~ N(0.1, 0.01²), p = (r cos a + ¼, r sin a);
    x = p + (−|θ₁ + θ₂|/√2, (θ₂ − θ₁)/√2). With p − (¼, 0) in polar coordinates the likelihood is N(r; 0.1, 0.01²) / (π r) for
    |a| < π/2 and 0 elsewhere (Greenberg, Nonnenmacher, Macke 2019; Lueckmann et al. 2021, *Benchmarking simulation-based inference*).

    Target θ `(2,)`, input x `(2,)`, without units; all is observed.

    Example:
        >>> simulator = TwoMoons()
        >>> theta = simulator.posterior_samples(jnp.zeros(2), jax.random.key(0), 1000)
    """

    kind: ClassVar[str] = "two_moons"

    @property
    def prior(self) -> Uniform:
        return Uniform.box(2, 1.0)

    def sample(self, key: jax.Array) -> Batch:
        key_theta, key_arc = jax.random.split(key)
        theta = self.prior.sample(key_theta)
        x = _arc(key_arc, 1)[0] + _shift(theta)
        return fully_observed(x, theta)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        """−log 4 inside the square [−1, 1]², −∞ outside."""
        return self.prior.log_prob(x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        """log p(x | θ), −∞ where the half circle cannot reach; `x` is θ, `element.input` the observed point."""
        point = element.input - _shift(x) - jnp.array([CENTRE, 0.0])
        inside = point[0] > 0
        # r is differentiated where it is not used as well, so its argument must stay away from 0 there
        radius = jnp.sqrt(jnp.where(inside, jnp.sum(point**2), 1.0))
        white = (radius - RADIUS_MEAN) / RADIUS_STD
        log_density = -0.5 * white**2 - math.log(RADIUS_STD * math.sqrt(2 * math.pi)) - jnp.log(math.pi * radius)
        return jnp.where(inside, log_density, -jnp.inf)

    def posterior_samples(self, x: jax.Array, key: jax.Array, n: int) -> jax.Array:
        """Exact draws of p(θ | x): solve x for θ with fresh noise, take either sign, keep what the prior allows.

        θ ↦ shift(θ) is linear with one Jacobian on both halves, so the draws need no weights. Runs on the host: not under `jit`.

        Args:
            x: observed point `(2,)`.
            key: random key.
            n: number of draws.

        Returns:
            `(n, 2)`.

        Raises:
            ConfigError: n is negative, or x is so improbable that no θ of the prior can be found for it.

        Example:
            >>> TwoMoons().posterior_samples(jnp.zeros(2), jax.random.key(0), 1000).shape
            (1000, 2)
        """
        require(n >= 0, "n >= 0", n, "pass a number of draws")
        block = max(1024, n)
        found: list[np.ndarray] = []
        count = 0
        for round_ in range(MAX_ROUNDS):
            if count >= n:
                break
            theta, accepted = _propose(jnp.asarray(x), jax.random.fold_in(key, round_), block)
            found.append(np.asarray(theta)[np.asarray(accepted)])
            count += len(found[-1])
        require(count >= n, "a point that the simulator can produce", f"x = {np.asarray(x).tolist()}", "pass one with x[0] below 0.35")
        return jnp.asarray(np.concatenate([np.zeros((0, 2)), *found])[:n])
