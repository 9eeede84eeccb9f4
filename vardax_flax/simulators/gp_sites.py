"""A field on a line seen at random sites: irregular observations whose posterior is known exactly."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Conjugate
from vardax_flax.ops.gaussian import standard_log_prob
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import least_squares, solve_upper
from vardax_flax.simulators.observe import check_noise, gaussian_log_likelihood, observe

JITTER = 1e-6  # of the prior variance, so that its Cholesky factor exists in single precision


class _Prior(NamedTuple):
    """The Cholesky factor L of K, and L⁻¹, `(nodes, nodes)`."""

    chol: Any
    whiten: Any


@dataclasses.dataclass(frozen=True)
class GaussianSites(Conjugate):
    """A Gaussian process on [0, 1], observed at sites that differ from one element to the next.

    x ~ N(0, K), K_ij = (1 + √3 r) e^{−√3 r}, r = |s_i − s_j| / length (Matérn 3/2), at the nodes s of a regular grid. Sites t_j ~ U(0, 1),
    y_j = x interpolated linearly at t_j + σ_j ε, σ_j = noise_std e^{noise_spread ε'}: instruments of different quality. What is in `coords`
    is t, in `noise_scale` σ. The posterior is that of a linear Gaussian model whose operator depends on the sites (Rasmussen & Williams
    2006, *Gaussian processes for machine learning*, chapter 2).

    Target x `(nodes,)`, input y `(sites,)`, coords `(sites, 1)`, noise_scale `(sites,)`, without units.

    Args:
        nodes: grid points of the field.
        sites: places of observation.
        length: over which the field stays alike.
        noise_std: median standard deviation of the noise.
        noise_spread: standard deviation of its logarithm.
        missing_rate: probability in [0, 1) that a site is silent.

    Raises:
        ConfigError: fewer than 2 nodes or 1 site, a length, noise or rate out of range.

    Example:
        >>> simulator = GaussianSites()
        >>> mean, cov = simulator.posterior(simulator.sample(jax.random.key(0)))
    """

    kind: ClassVar[str] = "gp_sites"

    nodes: int = 8
    sites: int = 12
    length: float = 0.3
    noise_std: float = 0.2
    noise_spread: float = 0.5
    missing_rate: float = 0.2

    def __post_init__(self) -> None:
        require(self.nodes >= 2, "at least 2 nodes", self.nodes, "pass more")
        require(self.sites >= 1, "at least 1 site", self.sites, "pass more")
        require(0 < self.length < math.inf, "length > 0", self.length, "pass a positive length")
        require(0 <= self.noise_spread < math.inf, "noise_spread >= 0", self.noise_spread, "pass such a spread")
        check_noise(self.noise_std, self.missing_rate)

    @functools.cached_property
    def _arrays(self) -> _Prior:
        s = np.linspace(0, 1, self.nodes)
        r = math.sqrt(3) * np.abs(s[:, None] - s) / self.length
        cov = (1 + r) * np.exp(-r) + JITTER * np.eye(self.nodes)
        chol = np.linalg.cholesky(cov)
        return _Prior(chol, np.linalg.inv(chol))

    def _prior(self) -> _Prior:
        # a traced constant is remembered by the identity of its NumPy array: one object must not serve two precisions
        return _Prior(*(jnp.asarray(a.astype(jnp.result_type(float), copy=False)) for a in self._arrays))

    def operator(self, coords: jax.Array) -> jax.Array:
        """H(t) `(sites, nodes)`: linear interpolation from the nodes to the sites `(sites, 1)`."""
        place = jnp.clip(coords, 0, 1) * (self.nodes - 1)
        return jnp.maximum(1 - jnp.abs(place - jnp.arange(self.nodes)), 0)

    def sample(self, key: jax.Array) -> Batch:
        key_state, key_sites, key_scale, key_observe = jax.random.split(key, 4)
        x = self._prior().chol @ jax.random.normal(key_state, (self.nodes,))
        coords = jax.random.uniform(key_sites, (self.sites, 1))
        scale = self.noise_std * jnp.exp(self.noise_spread * jax.random.normal(key_scale, (self.sites,)))
        y, mask = observe(key_observe, self.operator(coords) @ x, scale, self.missing_rate)
        return Batch(input=y, mask=mask, target=x, coords=coords, noise_scale=scale)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        whiten = self._prior().whiten
        log_det = jnp.log(jnp.diagonal(whiten)).sum()
        return log_det + standard_log_prob(whiten @ x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        coords, scale = self._seen(element)
        return gaussian_log_likelihood(element.input, element.mask, self.operator(coords) @ x, scale)

    @full_precision
    def posterior(self, element: Batch) -> tuple[jax.Array, jax.Array]:
        """Mean `(nodes,)` and covariance `(nodes, nodes)` of p(x | y, t, σ), exact for any mask."""
        coords, scale = self._seen(element)
        prior, seen = self._prior(), element.mask != 0
        # x = L w with w ~ N(0, I): ridge regression of what is seen, in units of its noise
        g = jnp.where(seen[:, None], self.operator(coords) @ prior.chol, 0) / scale[:, None]
        y = jnp.where(seen, element.input, 0) / scale
        ridge = jnp.concatenate([g, jnp.eye(self.nodes, dtype=g.dtype)])
        w, triangle = least_squares(ridge, jnp.concatenate([y, jnp.zeros(self.nodes, y.dtype)]))
        factor = prior.chol @ solve_upper(triangle, jnp.eye(self.nodes, dtype=g.dtype))
        return prior.chol @ w, factor @ factor.T

    def _seen(self, element: Batch) -> tuple[jax.Array, jax.Array]:
        """Sites and scales, harmless where silent."""
        seen = element.mask != 0
        return jnp.where(seen[:, None], element.coords, 0), jnp.where(seen, element.noise_scale, 1)
