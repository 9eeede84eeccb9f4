"""The amortized posterior: an encoder and a head that answer any observation in one forward pass."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, check_choices, closest, require
from vardax_flax.core.interfaces import (
    Decoder,
    DensityHead,
    Encoded,
    Encoder,
    Head,
    Key,
    LocatingEncoder,
    MarginalPrior,
    Simulator,
)
from vardax_flax.core.remember import traced
from vardax_flax.encoders import EncoderConfig, MLPEncoderConfig
from vardax_flax.fourdvarnet import SolvedAnalysisEncoderConfig, SolverEncoderConfig
from vardax_flax.heads import HEADS, FlowHeadConfig, HeadConfig, RegressionHeadConfig, ScoreDiffusionHead
from vardax_flax.heads.sampling import in_blocks, rows_in_blocks
from vardax_flax.nn import Standardizer, Statistic, initialise
from vardax_flax.posteriors.calls import Amortized, bucket_of, cut, static_spec
from vardax_flax.posteriors.ensemble import EnsemblePosterior
from vardax_flax.posteriors.guided import Observe, guided_sampler
from vardax_flax.posteriors.sobolev import SobolevTerm, exact_estimate
from vardax_flax.posteriors.spaces import UnconstrainedEncoder


class AmortizedPosterior(Amortized):
    """q(x | y, x_b) = head(x; encoder(y, mask, x_b)), trained by min −E[log q(x | y, x_b)] over simulations (neural posterior estimation).

    Reference: Papamakarios & Murray 2016; Cranmer, Brehmer & Louppe 2020, *The frontier of simulation-based inference*. With a background
    of the state's shape the head models the increment x − x_b, or what the encoder makes of the state; targets are standardised by
    statistics kept in the model.

    Args:
        encoder: observation → context.
        head: context → distribution of the flat, standardised state, or a state alone.
        config: must name the head's type.
        spec: shapes of one element (`simulator.spec`), with a target.
        sobolev: a loss on the derivative of the mode, or None.

    Raises:
        ConfigError: `config.head_type` disagrees with the head, or the spec has no target.

    Example:
        >>> posterior = AmortizedConfig(head=FlowHeadConfig()).build(simulator, nnx.Rngs(0))
        >>> draws = posterior.sample(batch, jax.random.key(0), 1000)        # (B, 1000, *state)
    """

    def __init__(self, encoder: Encoder, head: Decoder, config: AmortizedConfig, spec: Batch, sobolev: SobolevTerm | None = None) -> None:
        require(
            config.head_type == head.kind,
            f"a {config.head_type!r} head as config.head_type says", f"{head.kind!r}", "build the head from config.head",
        )  # fmt: skip
        if spec.target is None:
            raise ConfigError("expected a spec with a target to infer, got None; do simulate Batch(..., target=x)")
        self.spec = static_spec(spec)
        self.allow_unobserved = config.allow_unobserved
        self.encoder = encoder
        self.head = head
        self.sobolev = sobolev
        self.increment = spec.background is not None and spec.background.shape == spec.target.shape
        self.target = Standardizer((math.prod(spec.target.shape),))
        self.calibrated = Statistic(jnp.zeros((), bool))

    def calibrate(self, batch: Batch) -> None:
        """Learn the standardisation of inputs and target from one large batch of simulations; once."""
        if self.calibrated[...]:
            return  # a second training goes on with the scales that the weights were trained for
        self.encoder.calibrate(batch)
        if not isinstance(self.encoder, LocatingEncoder):  # else standardised already
            self.target.calibrate(self._flat(batch.target - self._origin(batch)))
        if self.sobolev is not None:
            self.sobolev.calibrate(batch)
        self.calibrated[...] = jnp.ones((), bool)

    def loss(self, batch: Batch, key: Key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean −log q(x | y) in nats over the batch, in the units of x, plus the term on derivatives if there is one; with the
        gradient of what the encoder adds.

        Of a head without density, its own loss of the standardised state.
        """
        if batch.target is None:
            raise ValueError("expected `target` in a training batch, got None; do simulate Batch(..., target=x)")
        located = self._locate(batch)
        z, log_det = self._to_z(batch.target, batch, located)
        loss = self.head.loss(z, located.context, key)
        loss = (loss - log_det if isinstance(self.head, DensityHead) else loss).mean()
        terms = {}
        if isinstance(self.encoder, LocatingEncoder) and (penalty := self.encoder.penalty(batch.target, located.frame)) is not None:
            terms["penalty"] = penalty.mean()
            loss = loss + terms["penalty"] - jax.lax.stop_gradient(terms["penalty"])  # its gradient alone: the loss stays −log q
        if self.sobolev is None:
            return loss, terms
        terms["sobolev"] = self.sobolev(lambda batch: self.traced_mode(batch, key), batch, self.spec, jax.random.fold_in(key, 1))
        return loss + terms["sobolev"], terms

    def traced_mode(self, batch: Batch, key: Key) -> jax.Array:
        located = self._locate(batch)
        return self._to_x(self.head.mode(located.context, key), batch, located)

    def traced_sample(self, batch: Batch, key: Key, n: int) -> jax.Array:
        head = self.head
        if not isinstance(head, Head):
            raise NotImplementedError(f"expected a head that draws, got {head.kind!r}; do call model(batch), or train another head")
        located = self._locate(batch)
        return self._to_x(head.sample(located.context, key, n), batch, located, draws=True)

    def traced_log_prob(self, x: jax.Array, batch: Batch) -> jax.Array:
        head = self.head
        if not isinstance(head, DensityHead):
            do = "do use sample or model(batch), or train a flow or regression head"
            raise NotImplementedError(f"expected a head with a density, got {head.kind!r}; {do}")
        located = self._locate(batch)
        context = located.context
        draws = x.ndim - len(self.state_shape) > context.ndim - 1
        z, log_det = self._to_z(x, batch, located, draws=draws)
        if context.ndim != 2:
            return head.log_prob(z, context[..., None, :] if draws else context) + log_det
        if not draws:
            return rows_in_blocks(lambda rows: head.log_prob(*rows), (z, context)) + log_det
        one = lambda context, z: head.log_prob(z, context[:, None])[..., None]  # noqa: E731
        return in_blocks(one, context, z, z.shape[1], z.shape[2])[..., 0] + log_det

    def guided_sample(
        self, batch: Batch, key: Key, n: int, observe: Observe, y: Any, noise_std: Any, *, inflation: float = 1.0
    ) -> jax.Array:
        """n draws of **approximately** q(x | batch) N(y; A(x), σ²) for new observations y of a kind never seen in training.

        For a score head (`heads.guided_sample`; Rozet & Louppe 2023, *Score-based data assimilation*). Exact if the posterior is Gaussian
        and A linear; otherwise a guess that no gate has judged.

        Args:
            batch, key, n: as of `sample`.
            observe: A, one state `(*state)` → what is observed of it, `(*new)`; pass one function and not a new lambda each time, so that
                it is compiled once.
            y: `(*batch, *new)`; NaN where not observed.
            noise_std: σ, broadcast to y.
            inflation: of the variance of A(x) while x is noisy.

        Raises:
            NotImplementedError: the head is no score head.
            ConfigError: y of another shape, a σ that is not positive, an observation that is not finite.

        Example:
            >>> draws = posterior.guided_sample(batch, jax.random.key(0), 1000, lambda x: x.sum(), y=jnp.ones(256), noise_std=0.1)
        """
        if not isinstance(self.head, ScoreDiffusionHead):
            raise NotImplementedError(f"expected a score head to guide, got {self.head.kind!r}; do train one, or condition by weights")
        require(n > 0, "n > 0 draws", n, "pass a positive number")
        y = jnp.asarray(y, float)
        new = tuple(jax.eval_shape(observe, jax.ShapeDtypeStruct(self.state_shape, y.dtype)).shape)

        def checked(extra: Any, lead: tuple[int, ...], pad: Any) -> Any:
            key, (y, std) = extra
            require(y.shape == (*lead, *new), f"`y` of shape {(*lead, *new)}", y.shape, "reshape it to what `observe` returns")
            require(not bool(jnp.isinf(y).any()), "finite or missing (NaN) values in `y`", "an infinite one", "repair it")
            require(bool(jnp.all(std > 0)), "noise_std > 0", std, "pass a standard deviation")
            return key, (pad(y), pad(std))

        extra = key, (y, jnp.broadcast_to(jnp.asarray(noise_std, y.dtype), y.shape))
        bucket = n if traced((batch, extra)) else bucket_of(n)
        draws = self._answer(guided_sampler(bucket, observe, inflation), batch, extra, checked)
        return cut(draws, n, draws.ndim - len(self.state_shape) - 1)

    def _locate(self, batch: Batch) -> Encoded:
        if isinstance(self.encoder, LocatingEncoder):
            return self.encoder.locate(batch)
        return Encoded(self.encoder(batch), None)

    def _origin(self, batch: Batch) -> Any:
        """What a state is measured from: the background where there is one."""
        return batch.background if self.increment else 0.0

    def _flat(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[: x.ndim - len(self.state_shape)], -1)

    def _to_z(self, x: jax.Array, batch: Batch, located: Encoded, *, draws: bool = False) -> tuple[jax.Array, jax.Array]:
        """The standardised state `(*batch, [n,] dim)` the head models, and log |dz/dx|."""
        if isinstance(self.encoder, LocatingEncoder):
            return self.encoder.to_z(x, batch, located.frame)
        return self.target(self._flat(x - self._per_draw(self._origin(batch), draws))), self.target.log_det()

    def _to_x(self, z: jax.Array, batch: Batch, located: Encoded, *, draws: bool = False) -> jax.Array:
        """The state of a standardised one."""
        if isinstance(self.encoder, LocatingEncoder):
            return self.encoder.to_x(z, batch, located.frame)
        x = self.target.inverse(z).reshape(*z.shape[:-1], *self.state_shape)
        return self._per_draw(self._origin(batch), draws) + x

    def _per_draw(self, origin: Any, draws: bool) -> Any:
        """The origin with an axis for draws before that of the state."""
        return jnp.expand_dims(origin, origin.ndim - len(self.state_shape)) if draws and self.increment else origin


@dataclasses.dataclass(frozen=True)
class AmortizedConfig:
    """An amortized posterior: which encoder and which head.

    Args:
        encoder: observation → context.
        head: context → distribution.
        allow_unobserved: answer a window without any observation (by the prior).
        space: what the head models: "physical", the state itself; or "unconstrained", the logit of its prior distribution function, so
            that no draw leaves the support (a simulator with a `MarginalPrior` only).
        members: of an ensemble, which is their mixture; 1 is the posterior alone.
        sobolev_weight: of a loss on the derivative of the mode by the observation, for a regression head on a simulator where that
            derivative is known (`Conjugate`, `LeastSquares`); 0 is none.
    """

    kind: ClassVar[str] = "amortized"

    encoder: EncoderConfig | SolverEncoderConfig | SolvedAnalysisEncoderConfig = dataclasses.field(default_factory=MLPEncoderConfig)
    head: HeadConfig = dataclasses.field(default_factory=FlowHeadConfig)
    allow_unobserved: bool = False
    space: Literal["physical", "unconstrained"] = "physical"
    members: int = 1
    sobolev_weight: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.members > 0, "members > 0", self.members, "pass a positive number")
        require(self.sobolev_weight >= 0, "sobolev_weight >= 0", self.sobolev_weight, "pass 0 or more")
        explicit = self.sobolev_weight == 0 or isinstance(self.head, RegressionHeadConfig)
        got = f"{self.head.kind!r}"
        require(explicit, "a regression head, whose mode is explicit, for sobolev_weight", got, "pick that head, or pass 0")
        # the exact estimate is a mean or mode of x, which the bijection does not keep
        same = self.sobolev_weight == 0 or self.space == "physical"
        require(same, 'space="physical" for sobolev_weight', self.space, "pass that space, or a weight of 0")

    @property
    def head_type(self) -> str:
        """The head's kind."""
        return self.head.kind

    def build(self, simulator: Simulator, rngs: nnx.Rngs) -> AmortizedPosterior | EnsemblePosterior:
        """The untrained posterior for the shapes of `simulator.spec`; the encoder asks of it what it needs."""
        require(self.head.kind in HEADS, f"a head of {', '.join(HEADS)}", self.head.kind, f"pick one{closest(self.head.kind, HEADS)}")
        if self.members > 1:
            return initialise(_ensemble, rngs, self, simulator)
        return initialise(_one, rngs, self, simulator)


def _one(rngs: nnx.Rngs, config: AmortizedConfig, simulator: Simulator) -> AmortizedPosterior:
    spec = simulator.spec
    encoder: Any = config.encoder.build(spec, rngs, simulator)
    if config.space == "unconstrained":
        got = type(simulator).__name__
        require(isinstance(simulator, MarginalPrior), "a simulator with a `MarginalPrior`", got, 'leave space="physical"')
        assert isinstance(simulator, MarginalPrior)
        encoder = UnconstrainedEncoder(encoder, simulator.prior)
    dim = math.prod(spec.target.shape)
    net, grid = getattr(config.head, "net", None), getattr(encoder, "grid", None)
    fits = net is None or grid is None or tuple(net.grid) == tuple(grid)
    require(fits, f"a network of the head on the grid of the encoder, {grid}", None if net is None else net.grid, "set net.grid to it")
    sobolev = SobolevTerm(exact_estimate(simulator), config.sobolev_weight, spec) if config.sobolev_weight else None
    return AmortizedPosterior(encoder, config.head.build(dim, encoder.features, rngs), config, spec, sobolev)


def _ensemble(rngs: nnx.Rngs, config: AmortizedConfig, simulator: Simulator) -> EnsemblePosterior:
    return EnsemblePosterior([_one(rngs, config, simulator) for _ in range(config.members)])
