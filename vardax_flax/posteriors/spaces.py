"""The spaces a bounded state may be modelled in: physical x, cube c = F(x) ∈ (0, 1)^D, unconstrained u = logit c, F the prior's marginals.

    q(c) = q(u) Π (1 + e^u)(1 + e^{−u})        q(x) = q(c) Π p(x)        p the prior densities

Everything goes through u, which no edge cuts off and which keeps its digits where c is 1 to rounding. The cube is the physical space of a
prior that is uniform on it.
"""

from __future__ import annotations

from typing import Any, Literal

import jax

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Encoded, Encoder, LocatingEncoder, Marginals
from vardax_flax.nn import Standardizer
from vardax_flax.simulators.priors import Uniform


def coordinates(prior: Marginals, space: Literal["physical", "cube"]) -> Marginals:
    """The prior as it is in a space: uniform in the cube.

    Example:
        >>> u, log_det = to_unconstrained(coordinates(prior, "cube"), c)
    """
    return prior if space == "physical" else Uniform((0.0,) * prior.size, (1.0,) * prior.size)


def to_unconstrained(prior: Marginals, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u = logit F(x) and log |du/dx| = Σ log p(x) + softplus(u) + softplus(−u).

    Args:
        prior: F and p.
        x: `(*batch, size)`.

    Returns:
        u `(*batch, size)`, finite; the logarithm `(*batch,)`, −∞ outside the support, where no density is.

    Example:
        >>> u, log_det = to_unconstrained(TwoMoons().prior, jnp.array([0.5, -0.2]))
    """
    u = prior.to_logit(x)
    return u, prior.log_prob(x) + (jax.nn.softplus(u) + jax.nn.softplus(-u)).sum(axis=-1)


def from_unconstrained(prior: Marginals, u: jax.Array) -> jax.Array:
    """x = F⁻¹(sigmoid u), within the support, `(*batch, size)`."""
    return prior.from_logit(u)


class UnconstrainedEncoder(LocatingEncoder):
    """Any encoder, with the standardised u of the state in place of x: no draw leaves the support, and no density is spent outside.

    Args:
        encoder: observation → context.
        prior: of the state.

    Raises:
        ConfigError: the encoder has coordinates of its own.

    Example:
        >>> encoder = UnconstrainedEncoder(IdentityEncoderConfig().build(simulator.spec, nnx.Rngs(0)), simulator.prior)
    """

    def __init__(self, encoder: Encoder, prior: Marginals) -> None:
        free = not isinstance(encoder, LocatingEncoder)
        do = 'pick another, or space="physical"'
        require(free, "an encoder without coordinates of its own", type(encoder).__name__, do)
        self.encoder = encoder
        self.prior = prior
        self.features = encoder.features
        self.u = Standardizer((prior.size,))

    def calibrate(self, batch: Batch) -> None:
        self.encoder.calibrate(batch)
        self.u.calibrate(to_unconstrained(self.prior, batch.target)[0])

    def locate(self, batch: Batch) -> Encoded:
        return Encoded(self.encoder(batch), None)

    def to_z(self, x: jax.Array, batch: Batch, frame: Any) -> tuple[jax.Array, jax.Array]:
        u, log_det = to_unconstrained(self.prior, x)
        return self.u(u), log_det + self.u.log_det()

    def to_x(self, z: jax.Array, batch: Batch, frame: Any) -> jax.Array:
        return from_unconstrained(self.prior, self.u.inverse(z))
