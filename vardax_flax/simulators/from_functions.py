"""The user's own system: a prior, a forward model and a noise, as three functions.

How much the user knows decides the type: with both densities it is a `LogJoint`, and the gates that need one apply.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, require
from vardax_flax.core.interfaces import LogJoint, MarginalPrior, Marginals, Observing, Physics
from vardax_flax.simulators.observe import check_missing_rate, check_noise, gaussian_log_likelihood, lose, observe


def _returns(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Shape and dtype of what a user's function returns: one real array, or a one-line error."""
    try:
        out = jax.eval_shape(function, *args)
    except Exception as error:  # whatever the user's code raises, they need to know in which function
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"expected `{name}` that JAX can trace, got {type(error).__name__}: {reason}; do write it for one element with jax.numpy"
        ) from error
    one = isinstance(out, jax.ShapeDtypeStruct)
    require(one, f"one array from `{name}`", f"a {type(out).__name__}", "concatenate what it returns into one array")
    require(jnp.issubdtype(out.dtype, jnp.floating), f"a floating dtype from `{name}`", out.dtype, "convert with .astype(float)")
    return out


def _returns_array(name: str, function: Callable[..., Any], *args: Any) -> Any:
    out = _returns(name, function, *args)
    require(len(out.shape) >= 1, f"an array with at least one axis from `{name}`", "a scalar", "return jnp.atleast_1d(...)")
    return out


def _returns_scalar(name: str, function: Callable[..., Any], *args: Any) -> None:
    out = _returns(name, function, *args)
    require(out.shape == (), f"a scalar from `{name}`", f"shape {out.shape}", "sum over the axes of one element")


@dataclasses.dataclass(frozen=True)
class _Functions(Physics, Observing):
    sample_prior: Callable[..., Any]
    forward: Callable[..., Any]
    noise: float | Callable[..., Any]
    missing_rate: float = 0.0

    def __post_init__(self) -> None:
        x = _returns_array("sample_prior", self.sample_prior, jax.random.key(0))
        y = _returns_array("forward", self.forward, x)
        if callable(self.noise):
            noisy = _returns_array("noise", self.noise, jax.random.key(0), y)
            got = f"shape {noisy.shape} for an input of shape {y.shape}"
            require(noisy.shape == y.shape, "an array from `noise` of the shape it is given", got, "return y_clean plus noise")
            check_missing_rate(self.missing_rate)
        else:
            check_noise(self.noise, self.missing_rate)

    def sample(self, key: jax.Array) -> Batch:
        key_prior, key_noise, key_mask = jax.random.split(key, 3)
        x = jnp.asarray(self.sample_prior(key_prior))
        y, mask = self._observe(x, key_noise, key_mask)
        return Batch(input=y, mask=mask, target=x)

    def observe(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._observe(x, *jax.random.split(key))

    def _observe(self, x: jax.Array, key_noise: jax.Array, key_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        clean = self.predict(x)
        if callable(self.noise):
            return lose(key_mask, jnp.asarray(self.noise(key_noise, clean)), self.missing_rate)
        return observe(key_noise, clean, self.noise, self.missing_rate)

    def predict(self, x: jax.Array) -> jax.Array:
        """forward(x), shape of `input`."""
        return jnp.asarray(self.forward(x))


@dataclasses.dataclass(frozen=True)
class FromFunctions(_Functions):
    """A user's simulator that can be drawn from: x ~ prior, y ~ noise(forward(x)), values missing at random.

    Made by `from_functions`, which documents the fields.

    Args:
        sample_prior: `(key) -> x`, one state.
        forward: `(x) -> y` without noise.
        noise: standard deviation, or `(key, y) -> noisy y`.
        missing_rate: probability in [0, 1) that a value is not observed.

    Raises:
        ConfigError: a function that JAX cannot trace, or that returns the wrong shape or dtype.

    Example:
        >>> simulator = FromFunctions(lambda key: jax.random.normal(key, (2,)), jnp.tanh, noise=0.1)
        >>> element = simulator.sample(jax.random.key(0))
    """

    kind: ClassVar[str] = "functions"


@dataclasses.dataclass(frozen=True)
class FromFunctionsLogJoint(_Functions, LogJoint):
    """A user's simulator whose two densities are known as well: log p(x, y) = log p(x) + log p(y | x).

    Made by `from_functions`, which documents the fields.

    Args:
        sample_prior: `(key) -> x`, one state.
        forward: `(x) -> y` without noise.
        noise: standard deviation, or `(key, y) -> noisy y`.
        missing_rate: probability in [0, 1) that a value is not observed.
        prior_log_density: `(x) -> log p(x)`.
        likelihood_log_density: `(x, element) -> log p(y | x)`, or None for Gaussian noise.

    Raises:
        ConfigError: a function that JAX cannot trace, or that returns the wrong shape or dtype; a density that is missing.

    Example:
        >>> log_prior = lambda x: -0.5 * jnp.sum(x**2) - jnp.log(2 * jnp.pi)
        >>> simulator = from_functions(lambda key: jax.random.normal(key, (2,)), jnp.tanh, 0.1, log_prior)
    """

    kind: ClassVar[str] = "functions_log_joint"

    prior_log_density: Callable[..., Any] | None = None
    likelihood_log_density: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        element = self.spec
        require(self.prior_log_density is not None, "`log_prior`", None, "pass it, or use FromFunctions")
        _returns_scalar("log_prior", self.log_prior, element.target, element)
        known = self.likelihood_log_density is not None or not callable(self.noise)
        require(known, "`log_likelihood` for a noise that is a function", None, "pass it, or a standard deviation as noise")
        _returns_scalar("log_likelihood", self.log_likelihood, element.target, element)

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        assert self.prior_log_density is not None
        return self.prior_log_density(x)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        if self.likelihood_log_density is not None:
            return self.likelihood_log_density(x, element)
        assert not callable(self.noise)
        return gaussian_log_likelihood(element.input, element.mask, self.predict(x), self.noise)


@dataclasses.dataclass(frozen=True)
class FromMarginals(FromFunctions, MarginalPrior):
    """`FromFunctions` with a prior of known marginals; made by `from_functions`."""

    kind: ClassVar[str] = "functions_marginals"

    marginals: Marginals = dataclasses.field(kw_only=True)

    @property
    def prior(self) -> Marginals:
        return self.marginals


@dataclasses.dataclass(frozen=True)
class FromMarginalsLogJoint(FromFunctionsLogJoint, MarginalPrior):
    """`FromFunctionsLogJoint` with a prior of known marginals; made by `from_functions`."""

    kind: ClassVar[str] = "functions_marginals_log_joint"

    marginals: Marginals = dataclasses.field(kw_only=True)

    @property
    def prior(self) -> Marginals:
        return self.marginals


def from_functions(
    sample_prior: Callable[..., Any] | Marginals,
    forward: Callable[..., Any],
    noise: float | Callable[..., Any],
    log_prior: Callable[..., Any] | None = None,
    log_likelihood: Callable[..., Any] | None = None,
    missing_rate: float = 0.0,
) -> FromFunctions | FromFunctionsLogJoint:
    """A simulator from the user's own functions: x ~ p(x), y = noise(forward(x)), values missing at random.

    Each function is written for one element, in JAX, and is checked by tracing it, so nothing is simulated here. With `log_prior`
    and a known likelihood (Gaussian noise, or `log_likelihood`) the result is a `LogJoint`. A prior of independent components
    (`Uniform`, `Normal`, `LogNormal`, or several in a `Product`) brings its density along, and a model may keep to its support.
    Observations whose places or noise differ from one element to the next need a class instead: a `Simulator` whose `sample` returns
    `coords` or `noise_scale` (see `GaussianSites`).

    Args:
        sample_prior: `(key) -> x`, one state `(*state,)`; or `Marginals`.
        forward: `(x) -> y`, what would be observed without noise, `(*obs,)`.
        noise: standard deviation of Gaussian noise, in the units of y, or `(key, y) -> noisy y`.
        log_prior: `(x) -> log p(x)`, normalised, in nats.
        log_likelihood: `(x, element) -> log p(y | x)` of the values `element.input` where `element.mask` is 1, in nats.
        missing_rate: probability in [0, 1) that a value is not observed.

    Raises:
        ConfigError: a function that JAX cannot trace, or that returns the wrong shape or dtype; one density without the other;
            a noise that is not positive; a rate outside [0, 1).

    Example:
        >>> simulator = from_functions(lambda key: jax.random.normal(key, (2,)), jnp.tanh, noise=0.1)
        >>> simulator.spec.input.shape
        (2,)
    """
    if not callable(noise):
        try:
            noise = float(noise)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"expected `noise` as a number or a function, got {noise!r}; do pass a standard deviation") from error
    if isinstance(sample_prior, Marginals):
        require(log_prior is None, "no `log_prior` beside a prior that has one", log_prior, "leave it out")
        if callable(noise) and log_likelihood is None:
            return FromMarginals(sample_prior.sample, forward, noise, missing_rate, marginals=sample_prior)
        densities = sample_prior.log_prob, log_likelihood
        return FromMarginalsLogJoint(sample_prior.sample, forward, noise, missing_rate, *densities, marginals=sample_prior)
    if log_prior is None:
        require(log_likelihood is None, "`log_prior` beside `log_likelihood`", None, "pass both densities or none")
        return FromFunctions(sample_prior, forward, noise, missing_rate)
    return FromFunctionsLogJoint(sample_prior, forward, noise, missing_rate, log_prior, log_likelihood)
