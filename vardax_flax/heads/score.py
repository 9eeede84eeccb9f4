"""Score-diffusion head: a conditional Gaussian refined by a denoiser, drawn from by undoing noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.config import check_choices, require
from vardax_flax.core.interfaces import DensityHead
from vardax_flax.diffusion import EDM, SAMPLERS, STEPS, LogProb, Process, base_mean, denoised, log_prob, weight
from vardax_flax.diffusion.density import Weighting
from vardax_flax.diffusion.samplers import SamplerName, Velocity
from vardax_flax.flows import ConditionalGaussian, FieldGaussian
from vardax_flax.flows.field import check_long_waves
from vardax_flax.heads.sampling import ascend, element_keys, in_blocks
from vardax_flax.nn import FieldNet, TimedMLP, UNetConfig
from vardax_flax.ops.gaussian import standard_log_prob

MODE_STARTS, MODE_STEPS, MODE_DIM = 64, 30, 64


class ScoreDiffusionHead(DensityHead):
    """Denoising score matching on z = W(c) (x − μ(c)); draws by a reverse-time sampler, log q by the probability-flow ODE.

    With u = cos φ z + sin φ ε at the angle φ a network is trained by E λ(φ) ‖v(u, φ, c) − (cos φ ε − sin φ z)‖², which is denoising
    score matching in the preconditioning of Karras et al. 2022, equation 7, for data of unit variance (Vincent 2011; Salimans & Ho 2022).
    v = 0 is exact for a standard normal: an untrained head is the Gaussian beside it, which is trained by its own likelihood.

    Args:
        dim: size of x.
        context_features: size of the context c.
        config: noise process, sampler, network.

    Example:
        >>> head = ScoreHeadConfig(steps=24).build(dim=2, context_features=64, rngs=nnx.Rngs(0))
        >>> head.sample(context, jax.random.key(0), 1000).shape
        (256, 1000, 2)
    """

    kind = "score"

    def __init__(self, dim: int, context_features: int, config: ScoreHeadConfig, *, rngs: nnx.Rngs) -> None:
        self.dim = dim
        self.config = config
        width, field = config.width, config.net
        gaussian: ConditionalGaussian | FieldGaussian | None = None
        self.net: TimedMLP | FieldNet
        if field is None:
            gaussian = ConditionalGaussian(dim, context_features, full=True, width=width, depth=2, rngs=rngs) if config.affine else None
            self.net = TimedMLP(dim, context_features, dim, width=width, depth=config.depth, rngs=rngs)
        else:
            gaussian = FieldGaussian(field, dim, context_features, long_waves=config.long_waves, rngs=rngs) if config.affine else None
            self.net = FieldNet(field, dim, context_features, timed=True, rngs=rngs)
        self.affine = gaussian

    def _velocity(self, context: jax.Array) -> Velocity:
        """v of u `(*batch, dim)` and φ `(*batch,)`."""
        return lambda u, angle: self.net(u, t=0.25 * jnp.log(jnp.tan(angle)), context=context)

    def _whiten(self, x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.affine is None:
            lead = jnp.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            return jnp.broadcast_to(x, (*lead, self.dim)), jnp.zeros(lead, x.dtype)
        return self.affine.forward(x, context)

    def log_prob_of_gaussian(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """log density `(*batch,)` of the Gaussian alone, from which the head starts."""
        z, log_det = self._whiten(x, context)
        return log_det + standard_log_prob(z)

    def loss(self, x: jax.Array, context: jax.Array, key: jax.Array) -> jax.Array:
        """−log of the Gaussian plus the weighted denoising loss, `(*batch,)`; a bound on −log q + constant with likelihood weighting."""
        z, log_det = self._whiten(x, context)
        gaussian = -standard_log_prob(z) - log_det
        # the Gaussian is trained by its likelihood alone: the denoising loss would pull it to what is easy to denoise
        z = jax.lax.stop_gradient(z)
        key_level, key_noise = jax.random.split(key)
        shape = (self.config.noises, *z.shape[:-1])
        n = math.prod(shape)
        # one uniform number for the whole batch, spread evenly: less variance than one for each (Kingma et al. 2021)
        u = jnp.mod(jax.random.uniform(key_level, (), z.dtype) + jnp.arange(n, dtype=z.dtype) / max(n, 1), 1.0).reshape(shape)
        level, density = self.config.process.training_level(u)
        angle = jnp.arctan(level)
        noise = jax.random.normal(key_noise, (*shape, self.dim), z.dtype)
        cos, sin = jnp.cos(angle)[..., None], jnp.sin(angle)[..., None]
        error = self._velocity(context)(cos * z + sin * noise, angle) - (cos * noise - sin * z)
        return gaussian + (weight(self.config.weighting, level, density) * jnp.square(error).sum(axis=-1)).mean(axis=0)

    def sample(self, context: jax.Array, key: jax.Array, n: int) -> jax.Array:
        return self.sample_bent(context, key, n, self.config.sampler, lambda velocity, _: velocity, None)

    def sample_bent(
        self, context: jax.Array, key: jax.Array, n: int, name: SamplerName, bend: Callable[[Velocity, Any], Velocity], rows: Any
    ) -> jax.Array:
        """`sample` by a sampler and along another velocity, `bend(velocity, row)` with a row of `rows` for each context, flattened."""
        lead, steps = context.shape[:-1], self.config.steps if name == self.config.sampler else None
        angles = self.config.process.angles(steps or STEPS[name]).astype(context.dtype)
        sampler = SAMPLERS[name]

        def one(context: jax.Array, key: jax.Array, row: Any) -> jax.Array:
            key_start, key_path = jax.random.split(key)
            velocity, noise = bend(self._velocity(context), row), jax.random.normal(key_start, (self.dim,), context.dtype)
            return sampler(velocity, base_mean(velocity, angles[0], noise) + noise, angles, key_path)

        def draw(given: Any, keys: jax.Array) -> jax.Array:
            context, rows = given
            z = jax.vmap(lambda context, row, keys: jax.vmap(lambda key: one(context, key, row))(keys))(context, rows, keys)
            return z if self.affine is None else self.affine.inverse(z, context[:, None])[0]

        keys = jax.vmap(lambda key: jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(n)))(element_keys(lead, key))
        flat = context.reshape(-1, context.shape[-1])
        return in_blocks(draw, (flat, rows), keys, n, self.dim).reshape(*lead, n, self.dim)

    def log_prob(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """log q(x | c) in nats `(*batch,)`: an ODE for every state, so for thousands rather than millions of them."""
        return self.log_prob_with_error(x, context, jax.random.key(0)).value

    def log_prob_with_error(self, x: jax.Array, context: jax.Array, key: jax.Array) -> LogProb:
        """log q(x | c), and the standard error of its estimated trace: 0 up to 16 components, where it is exact."""
        z, log_det = self._whiten(x, context)
        lead = z.shape[:-1]
        flat = jnp.broadcast_to(context, (*lead, context.shape[-1])).reshape(-1, context.shape[-1])

        def one(z: jax.Array, context: jax.Array, key: jax.Array) -> LogProb:
            return log_prob(self._velocity(context), z, self.config.process, key)

        value, error = jax.vmap(one)(z.reshape(-1, self.dim), flat, element_keys(lead, key))
        return LogProb(value.reshape(lead) + log_det, error.reshape(lead))

    def mode(self, context: jax.Array, key: jax.Array) -> jax.Array:
        """Gradient ascent on log q from the best of 64 draws, each step an ODE and its adjoint; above 64 components the mean of q."""
        if self.dim > MODE_DIM:  # nothing drawn from q is near its mode there, and the mean costs one evaluation
            top = jnp.arctan(self.config.process.level(jnp.asarray(self.config.process.last, context.dtype)))
            z = denoised(self._velocity(context), jnp.zeros((*context.shape[:-1], self.dim), context.dtype), top)
            return z if self.affine is None else self.affine.inverse(z, context)[0]
        return ascend(lambda x: self.log_prob(x, context), self.sample(context, key, MODE_STARTS), steps=MODE_STEPS)


@dataclasses.dataclass(frozen=True)
class ScoreHeadConfig:
    """Score head: a denoiser, by default of `depth` residual blocks of `width`, drawn from in `steps` steps of a `sampler`.

    Args:
        process: how noise is added, and which levels are trained.
        weighting: of the levels in the loss, "unit" or "likelihood".
        sampler: "adams", "ddim", "dpm_solver", "euler_maruyama" (one evaluation a step), "heun", "stochastic_heun" (two), "ode" and "sde"
            (adaptive, and by a solver for SDEs).
        steps: of the sampler; None takes what two narrow modes need (28 of "adams", 24 of "heun", 80 to 400 of the samplers of lower
            order); "ode" chooses its own.
        noises: levels of noise that a state is seen at in one step of training: more than one is a better gradient, and costs little where
            the simulator or the encoder takes most of the time.
        affine: a conditional Gaussian next to the data.
        net: a U-Net for a state that is a field on its grid, instead of a network of `width` and `depth`; the Gaussian is then one of
            fields too (`FieldGaussian`), from a U-Net of the same size.
        long_waves: with `net`, how many coarser grids have a scale of their own in that Gaussian; None is none.
    """

    kind: ClassVar[str] = "score"
    process: Process = dataclasses.field(default_factory=EDM)
    weighting: Weighting = "unit"
    sampler: SamplerName = "adams"
    steps: int | None = None
    noises: int = 1
    width: int = 128
    depth: int = 3
    affine: bool = True
    net: UNetConfig | None = None
    long_waves: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        require(min(self.width, self.depth, self.noises) > 0, "positive sizes", self, "pass positive sizes")
        check_long_waves(self.long_waves, self.net)
        require(self.steps is None or self.steps >= 2, "at least 2 steps", self.steps, "pass more")

    def build(self, dim: int, context_features: int, rngs: nnx.Rngs) -> ScoreDiffusionHead:
        """The head for states of size `dim`."""
        return ScoreDiffusionHead(dim, context_features, self, rngs=rngs)
