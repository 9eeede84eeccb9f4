"""What the rooms promise each other. Capability is a type: a gate names the interface it needs and asks `isinstance`.

    Simulator ⊃ LogJoint ⊃ Conjugate        where data come from, and how much is known about it
    Simulator ⊃ Physics ⊃ LeastSquares      … and whether there is a forward model, and whitened residuals
    Simulator ⊃ ControlVariable             … and whether state and observation are maps of one white variable
    Simulator ⊃ MarginalPrior               … and whether the prior is a product of known `Marginals`
    Simulator ⊃ Stepping                    … and whether a trajectory follows a known model, step by step
    Simulator ⊃ Observing, ExactDraws       … and whether p(y | x), or p(x | y), can be drawn from
    Encoder ⊃ LocatingEncoder               one half of an amortized posterior; the second also maps states to simpler coordinates
    Decoder ⊃ Head ⊃ DensityHead            the other half: answers with a state, with draws, with a density
    Estimator                               what `fit` trains: it owns its loss
    Posterior                               what gates and users ask
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx

from vardax_flax.core.batch import Batch

Key = jax.Array
Predict = Callable[[jax.Array], jax.Array]  # H(M(·)): one state → its noise-free observation


class Simulator(abc.ABC):
    """A generative model of one element: background x_b (optional) → state x → observation (y, mask).

    Example:
        >>> element = simulator.sample(jax.random.key(0))           # no batch axis
        >>> batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(0), 256))
    """

    kind: ClassVar[str]

    @abc.abstractmethod
    def sample(self, key: Key) -> Batch:
        """Draw one element (input, mask, target[, background]) of the joint distribution, without batch axis."""

    @property
    def spec(self) -> Batch:
        """Shapes and dtypes of one element, by tracing (nothing is simulated)."""
        return jax.eval_shape(self.sample, jax.random.key(0))


class LogJoint(Simulator):
    """A simulator whose log densities are known, so that its posterior is known up to a constant."""

    @abc.abstractmethod
    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        """log p(x | x_b) of one state, in nats; `element.background` is used if the prior has one."""

    @abc.abstractmethod
    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        """log p(y | x) of one element's observed values, in nats."""


class Conjugate(LogJoint):
    """A simulator whose posterior is known exactly."""

    @abc.abstractmethod
    def posterior(self, element: Batch) -> tuple[jax.Array, jax.Array]:
        """Mean `(state,)` and covariance `(state, state)` of p(x | y, x_b) for one element."""


class Physics(Simulator):
    """A simulator with a deterministic forward model from a state to what would be observed without noise."""

    @abc.abstractmethod
    def predict(self, x: jax.Array) -> jax.Array:
        """H(M(x)): the noise-free observation of one state, shape of `input`."""


class Stepping(Simulator):
    """A simulator of whole trajectories `(times, n)` of a known model, seen with independent Gaussian noise.

    Args:
        noise_std: standard deviation of the noise, in the units of the state.
    """

    noise_std: float

    @abc.abstractmethod
    def step(self, x: jax.Array) -> jax.Array:
        """M: the state `(n,)` one time later."""


class Observing(Simulator):
    """A simulator whose states can be observed anew: y ~ p(y | x) for any x."""

    @abc.abstractmethod
    def observe(self, x: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
        """An observation of one state, 0 where not observed, and its mask; shapes of `input`."""


class ExactDraws(Simulator):
    """A simulator whose posterior can be drawn from exactly, under a trace."""

    @abc.abstractmethod
    def posterior_samples(self, x: jax.Array, key: Key, n: int) -> jax.Array:
        """n draws `(n, *state)` of the state given one observation x, all of it observed."""


class LeastSquares(LogJoint, Physics):
    """A simulator whose joint density is Gaussian in whitened residuals: log p(x, y | x_b) = −½‖r(x)‖² + constant."""

    @abc.abstractmethod
    def residual(self, x: jax.Array, element: Batch) -> jax.Array:
        """r(x) = (B^{−½}(x − x_b), R^{−½} m ⊙ (H(M(x)) − y)) of one element, `(m,)`, without unit."""


class ControlVariable(Simulator):
    """A simulator whose state and observation are known maps of white noise: x = L(w), y = H(w) + R^{½} ε with w, ε ~ N(0, I).

    The state may be a part of what w determines, such as one day of a window; where there is a background, both maps are around it. The log
    posterior density of w is −½‖w‖² − ½‖misfit‖² + constant.
    """

    @property
    @abc.abstractmethod
    def control_shape(self) -> tuple[int, ...]:
        """Shape of w."""

    @abc.abstractmethod
    def state(self, w: jax.Array, element: Batch) -> jax.Array:
        """L(w), the state `(*state)` of one control variable; `element.background` is used if the prior has one."""

    @abc.abstractmethod
    def misfit(self, w: jax.Array, element: Batch) -> jax.Array:
        """R^{−½} m ⊙ (H(w) − y) of one element, `(*obs)`, without unit; 0 where not observed."""


class Marginals(abc.ABC):
    """A distribution of independent components xᵢ ~ Fᵢ, as a bijection of its support to unconstrained coordinates uᵢ = logit Fᵢ(xᵢ).

    Everything but `sample` takes `(*batch, size)`. An instance is hashable.
    """

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of components."""

    @abc.abstractmethod
    def sample(self, key: Key) -> jax.Array:
        """One draw `(size,)`."""

    @abc.abstractmethod
    def log_prob(self, x: jax.Array) -> jax.Array:
        """Σ log pᵢ(xᵢ) in nats, `(*batch,)`; −∞ outside the support."""

    @abc.abstractmethod
    def to_logit(self, x: jax.Array) -> jax.Array:
        """u = log F(x) − log(1 − F(x)), exact in both tails; any finite number outside the support."""

    @abc.abstractmethod
    def from_logit(self, u: jax.Array) -> jax.Array:
        """x = F⁻¹(sigmoid u), within the support for every finite u."""


class MarginalPrior(Simulator):
    """A simulator whose state is a vector with a prior of independent components, so that a model may work in unconstrained coordinates."""

    @property
    @abc.abstractmethod
    def prior(self) -> Marginals:
        """p(x)."""


class Encoder(nnx.Module, abc.ABC):
    """Summarises what is observed: `(input, mask[, background, …]) → context`."""

    features: int  # of the context

    @abc.abstractmethod
    def __call__(self, batch: Batch) -> jax.Array:
        """Context of shape `(*batch, features)`."""

    def calibrate(self, batch: Batch) -> None:
        """Learn input statistics from one large batch, before training."""


class Encoded(NamedTuple):
    """What a `LocatingEncoder` finds in a batch.

    Args:
        context: `(*batch, features)`.
        frame: what its map between x and z needs, arrays with the leading axes of the batch.
    """

    context: jax.Array
    frame: Any


class LocatingEncoder(Encoder):
    """An encoder that also knows roughly where the state is, as a bijection x ↔ z given the batch: the head need only model z, flat.

    `to_z` and `to_x` take `(*batch, …)` or, with an axis of draws, `(*batch, n, …)`.
    The map is `affine` in z where the mean of z is that of x too.
    """

    affine: ClassVar[bool] = False
    grid: tuple[int, ...] | None = None  # of z and context, where they are fields `(*grid, channels)`

    @abc.abstractmethod
    def locate(self, batch: Batch) -> Encoded:
        """Context and frame."""

    @abc.abstractmethod
    def to_z(self, x: jax.Array, batch: Batch, frame: Any) -> tuple[jax.Array, jax.Array]:
        """z of states x, roughly standard normal under the posterior, and log |dz/dx|."""

    @abc.abstractmethod
    def to_x(self, z: jax.Array, batch: Batch, frame: Any) -> jax.Array:
        """The state of z."""

    def penalty(self, x: jax.Array, frame: Any) -> jax.Array | None:
        """What is added to the training loss of the head `(*batch,)`, so that the encoder learns to find true states x; or None."""
        return None

    def __call__(self, batch: Batch) -> jax.Array:
        return self.locate(batch).context


class Decoder(nnx.Module, abc.ABC):
    """One flat state vector given a context."""

    kind: ClassVar[str]

    @abc.abstractmethod
    def loss(self, x: jax.Array, context: jax.Array, key: Key) -> jax.Array:
        """Per-element training loss `(*batch,)` of states `(*batch, dim)`."""

    @abc.abstractmethod
    def mode(self, context: jax.Array, key: Key) -> jax.Array:
        """The state `(*batch, dim)` to answer with: the most probable one, or the one that a head says it aims at."""


class Head(Decoder):
    """A distribution over a flat state vector given a context."""

    @abc.abstractmethod
    def sample(self, context: jax.Array, key: Key, n: int) -> jax.Array:
        """`n` draws for every context: `(*batch, n, dim)`."""


class DensityHead(Head):
    """A head whose normalised density is available."""

    @abc.abstractmethod
    def log_prob(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """log q(x | context) in nats, `(*batch,)`; broadcasts over leading axes."""


class Estimator(nnx.Module, abc.ABC):
    """What `fit` trains. The model owns its loss; `fit` knows nothing else about it."""

    @abc.abstractmethod
    def loss(self, batch: Batch, key: Key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar training loss averaged over the batch, and scalar diagnostics."""

    def calibrate(self, batch: Batch) -> None:
        """Learn standardisation statistics from one large batch, before training."""


@runtime_checkable
class Posterior(Protocol):
    """What gates ask: draws and, where it exists, the density of p(x | y)."""

    def sample(self, batch: Batch, key: Key, n: int) -> jax.Array:
        """`(*batch, n, *state)` draws."""
        ...

    def log_prob(self, x: Any, batch: Batch) -> jax.Array:
        """`(*batch,)` log density of the states x."""
        ...


@runtime_checkable
class AnalysisStep(Protocol):
    """One step of a cycle: a forecast and an observation in, an analysis out."""

    def __call__(self, forecast: Any, obs: Any, *, obs_op: Any = None, obs_err_cov: Any = None) -> jax.Array:
        """The analysis, of the forecast's shape."""
        ...
