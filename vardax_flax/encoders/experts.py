"""A product of Gaussian experts, one for each observation: the head models only how the posterior departs from it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Encoded, LocatingEncoder, Simulator
from vardax_flax.encoders.inputs import point_inputs, points_of
from vardax_flax.nn import ResidualMLP, Standardizer, time_features
from vardax_flax.ops.precision import full_precision
from vardax_flax.ops.small import least_squares, matvec, solve_upper


class Product(NamedTuple):
    """A Gaussian of the standardised increment: its mean μ `(*batch, dim)`, R with RᵀR = Σ⁻¹ and R⁻¹, both `(*batch, dim, dim)`."""

    mean: jax.Array
    triangle: jax.Array
    inverse: jax.Array


class ProductOfExpertsEncoder(LocatingEncoder):
    """z = R (x − μ) with N(μ, (RᵀR)⁻¹) ∝ N(x; m, P) Π_j exp −½ (g_jᵀ x − b_j y_j − a_j)² / σ_j²; context = (μ, log sd).

    Every observation is an expert that knows x along one direction; the operator g_j, the gain b_j and the offset a_j are what one network
    makes of its coordinates, its noise scale σ_j (1 where there is none) and its mask, not of its value. Experts multiply, so the answer
    depends neither on their order nor on what is not observed; without any it is the prior, whose m and P are learned too, m being the
    background where there is one. What this can say is what is true where the observation is linear, with independent Gaussian noise, at
    whatever places: there nothing is left to the head. Reference: Hinton 2002, *Training products of experts by minimizing contrastive
    divergence*; Johnson et al. 2016, *Composing graphical models with neural networks*.

    Args:
        spec: of one element, `input` `(n,)` or `(n, channels)`, with a target.
        config: sizes.

    Raises:
        ConfigError: an observation of another number of axes, no target, or a background of another shape.

    Example:
        >>> encoder = ProductOfExpertsEncoderConfig().build(simulator.spec, nnx.Rngs(0))
        >>> context, product = encoder.locate(batch)
        >>> z, log_det = encoder.to_z(x, batch, product)
    """

    affine = True

    def __init__(self, spec: Batch, config: ProductOfExpertsEncoderConfig, *, rngs: nnx.Rngs) -> None:
        require(spec.target is not None, "a spec with a target", None, "pass Batch(..., target=x)")
        self.state_shape = tuple(spec.target.shape)
        same = spec.background is None or spec.background.shape == spec.target.shape
        require(same, "a background of the shape of the state, or none", spec.background, "pick another encoder")
        self.size = math.prod(self.state_shape)
        self.features = 2 * self.size
        self.inputs = point_inputs(spec)
        self.increment = Standardizer((self.size,))
        self.background = None if spec.background is None else Standardizer((self.size,))
        channels = math.prod(self.inputs.obs_shape)
        clock = time_features(jnp.zeros(1)).shape[-1]
        seen = channels * (self.inputs.n_channels - 1 + clock * self.inputs.n_coords)
        self.net = ResidualMLP(seen, channels * (self.size + 2), width=config.width, depth=config.depth, rngs=rngs)
        self.prior_mean = nnx.Param(jnp.zeros(self.size))
        self.prior_factor = nnx.Param(jnp.zeros((self.size, self.size)))  # U of P⁻¹ = UᵀU, with the logarithm of its diagonal

    def calibrate(self, batch: Batch) -> None:
        self.inputs.calibrate(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), points_of(batch)))
        flat = batch.target.reshape(-1, self.size)
        if self.background is not None:
            background = batch.background.reshape(flat.shape)
            self.background.calibrate(background)
            flat = flat - background
        self.increment.calibrate(flat)

    def locate(self, batch: Batch) -> Encoded:
        lead = batch.input.shape[: batch.input.ndim - 1 - len(self.inputs.obs_shape)]
        origin = self._origin(batch)
        product = self._multiply(*self._experts(points_of(batch), lead), origin)
        log_sd = 0.5 * jnp.log(jnp.square(product.inverse).sum(axis=-1))
        return Encoded(jnp.concatenate([origin + product.mean, log_sd], axis=-1), product)

    def _origin(self, batch: Batch) -> jax.Array:
        """The background in units of the standardised increment, `(*batch, dim)` or 0."""
        if self.background is None:
            return jnp.zeros(self.size, batch.input.dtype)
        flat = batch.background.reshape(*batch.background.shape[: batch.background.ndim - len(self.state_shape)], self.size)
        return self.background(flat) * self.background.std[...] / self.increment.std[...]

    def _experts(self, points: Batch, lead: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """g_j / σ_j `(*batch, experts, dim)` and (b_j y_j + a_j) / σ_j `(*batch, experts)`, 0 where nothing is observed."""
        value, *seen = self.inputs.observed(points)
        mask = seen[0]
        waves = [time_features(place) for place in seen[len(seen) - self.inputs.n_coords :]]
        rows = (*lead, value.shape[len(lead)], -1)
        raw = self.net(jnp.concatenate([field.reshape(rows) for field in (*seen, *waves)], axis=-1))
        raw = raw.reshape(*value.shape, self.size + 2)
        if self.inputs.noise is not None:
            raw = raw * jnp.exp(-self.inputs.noise.std[...] * seen[1])[..., None]
        raw = jnp.where(mask[..., None] != 0, raw, 0)
        told = raw[..., self.size] * value + raw[..., self.size + 1]
        return raw[..., : self.size].reshape(*lead, -1, self.size), told.reshape(*lead, -1)

    @full_precision
    def _multiply(self, operator: jax.Array, told: jax.Array, origin: jax.Array) -> Product:
        """All experts and the prior as one least-squares problem."""
        lead, raw = told.shape[:-1], self.prior_factor[...]
        factor = jnp.triu(raw, 1) + jnp.diag(jnp.exp(jnp.diagonal(raw)))
        innovation = told - jnp.einsum("...jd,...d->...j", operator, jnp.broadcast_to(origin, (*lead, self.size)))
        a = jnp.concatenate([operator, jnp.broadcast_to(factor, (*lead, *factor.shape))], axis=-2)
        b = jnp.concatenate([innovation, jnp.broadcast_to(factor @ self.prior_mean[...], (*lead, self.size))], axis=-1)
        mean, triangle = jnp.vectorize(least_squares, signature="(m,n),(m)->(n),(n,n)")(a, b)
        identity = jnp.eye(self.size, dtype=triangle.dtype)
        inverse = jnp.vectorize(lambda upper: solve_upper(upper, identity), signature="(n,n)->(n,n)")(triangle)
        return Product(mean, triangle, inverse)

    @full_precision
    def to_z(self, x: jax.Array, batch: Batch, frame: Product) -> tuple[jax.Array, jax.Array]:
        flat = x.reshape(*x.shape[: x.ndim - len(self.state_shape)], self.size)
        product, background = self._per_draw(frame, batch, flat.ndim)
        z = matvec(product.triangle, self.increment(flat - background) - product.mean)
        return z, self.increment.log_det() + jnp.log(jnp.diagonal(product.triangle, axis1=-2, axis2=-1)).sum(axis=-1)

    @full_precision
    def to_x(self, z: jax.Array, batch: Batch, frame: Product) -> jax.Array:
        product, background = self._per_draw(frame, batch, z.ndim)
        flat = background + self.increment.inverse(product.mean + matvec(product.inverse, z))
        return flat.reshape(*z.shape[:-1], *self.state_shape)

    def _per_draw(self, frame: Product, batch: Batch, rank: int) -> tuple[Product, Any]:
        """The product and the flat background, with an axis for draws if states of this rank have one."""
        lead = frame.mean.ndim - 1
        background = 0.0 if self.background is None else batch.background.reshape(frame.mean.shape)
        if rank == frame.mean.ndim:
            return frame, background
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, lead) if jnp.ndim(leaf) else leaf, (frame, background))


@dataclasses.dataclass(frozen=True)
class ProductOfExpertsEncoderConfig:
    """A Gaussian expert for each observation at its `coords`, all from one residual network of this `width` and `depth`."""

    kind: ClassVar[str] = "experts"
    width: int = 64
    depth: int = 2

    def __post_init__(self) -> None:
        require(self.width > 0 and self.depth >= 0, "positive sizes", self, "pass positive sizes")

    def build(self, spec: Batch, rngs: nnx.Rngs, simulator: Simulator | None = None) -> ProductOfExpertsEncoder:
        """The encoder for elements of these shapes."""
        return ProductOfExpertsEncoder(spec, self, rngs=rngs)
