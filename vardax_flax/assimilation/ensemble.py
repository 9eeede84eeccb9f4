"""Ensembles as background covariances, and cycles that carry one: from the iterative ensemble smoother to the hybrid with a static B."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vardax_flax.assimilation.covariance import Covariance
from vardax_flax.assimilation.cycle import Windows, follow
from vardax_flax.assimilation.methods import VariationalMethod
from vardax_flax.assimilation.models import trajectory
from vardax_flax.assimilation.posterior import GaussNewtonHessian
from vardax_flax.assimilation.solve import Solve
from vardax_flax.assimilation.windows import IncrementalFourDVar, StrongFourDVar
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError, require
from vardax_flax.ops.precision import full_precision


class Localised(Covariance):
    """The covariance of an ensemble, its far correlations cut off: C ∘ Σ_k a_k a_kᵀ, a_k = (x_k − x̄) / √(K − 1).

    Its root is that of the extended control variable (Lorenc 2003, *The potential of the ensemble Kalman filter for NWP*):
    S α = Σ_k a_k ∘ (C^{½} α_k), one field α_k `(columns of C^{½},)` for each member; without localisation one number, and rank K − 1.

    Args:
        members: x_k `(members, *state)`.
        localisation: C, a correlation with variances 1 such as `Matern(grid, length)`; None keeps the far correlations.

    Raises:
        ConfigError: fewer than two members, a localisation of another size or of other variances.

    Example:
        >>> Localised(ensemble, Matern((40,), length=4.0)).white_size      # ensemble (20, 40)
        800
    """

    def __init__(self, members: Any, localisation: Covariance | None = None) -> None:
        members = jnp.asarray(members)
        require(members.ndim >= 2 and len(members) >= 2, "two members or more (members, *state)", members.shape, "pass an ensemble")
        flat = members.reshape(len(members), -1)
        self.anomalies = (flat - flat.mean(axis=0)) / math.sqrt(len(flat) - 1)
        self.size = flat.shape[1]
        self.localisation = localisation
        if localisation is not None:
            require(localisation.size == self.size, f"a localisation of size {self.size}", localisation.size, "pass one for the state")
            with jax.ensure_compile_time_eval():
                off = float(jnp.abs(localisation.diagonal() - 1).max())
            require(off < 1e-3, "a localisation with variances 1", f"one that is off by {off:.2g}", "pass a correlation")

    @property
    def white_size(self) -> int:
        return len(self.anomalies) * (1 if self.localisation is None else self.localisation.white_size)

    @full_precision
    def root(self, white: jax.Array) -> jax.Array:
        if self.localisation is None:
            return self.anomalies.T @ white
        shares = jax.vmap(self.localisation.root)(white.reshape(len(self.anomalies), -1))
        return (self.anomalies * shares).sum(axis=0)

    def diagonal(self) -> jax.Array:
        return jnp.square(self.anomalies).sum(axis=0)

    def perturbations(self, key: jax.Array) -> jax.Array:
        """α of each anomaly, `(members, white_size)`: S αₖ = a_k. Nothing is drawn."""
        one = jnp.ones(1) if self.localisation is None else self.localisation.whiten(jnp.ones(self.size))
        return jnp.kron(jnp.eye(len(self.anomalies)), one[None]).astype(self.anomalies.dtype)


class Hybrid(Covariance):
    """B = (1 − β) B_static + β B_ensemble: what the climate says where the ensemble says nothing (Hamill & Snyder 2000).

    Its root has the columns of both, S = (√(1 − β) B_static^{½}, √β B_ensemble^{½}) (Lorenc 2003), so a method needs to know nothing of it.

    Args:
        static: B_static.
        ensemble: B_ensemble, a `Localised`.
        weight: β, in (0, 1].

    Raises:
        ConfigError: a weight outside (0, 1], two sizes.

    Example:
        >>> B = Hybrid(static, Localised(ensemble, Matern((40,), length=4.0)), weight=0.5)
        >>> StrongFourDVar((40,), step, background_cov=B, obs_cov=1.0)(batch)
    """

    def __init__(self, static: Covariance, ensemble: Localised, weight: float) -> None:
        require(0 < weight <= 1, "a weight in (0, 1]", weight, "pass the static covariance alone for 0")
        require(static.size == ensemble.size, f"two covariances of size {static.size}", ensemble.size, "pass both for the same state")
        self.static, self.ensemble, self.weight, self.size = static, ensemble, weight, static.size

    @property
    def white_size(self) -> int:
        return self.static.white_size + self.ensemble.white_size

    def root(self, white: jax.Array) -> jax.Array:
        static, ensemble = jnp.split(white, [self.static.white_size])
        return math.sqrt(1 - self.weight) * self.static.root(static) + math.sqrt(self.weight) * self.ensemble.root(ensemble)

    def diagonal(self) -> jax.Array:
        return (1 - self.weight) * self.static.diagonal() + self.weight * self.ensemble.diagonal()

    def perturbations(self, key: jax.Array) -> jax.Array:
        """Controls `(members, white_size)` of anomalies of covariance B: the ensemble's own, √β a_k, and a draw of the static part.

        Without the draw an ensemble whose gain knows more than its own spread shrinks from cycle to cycle, until B is B_static.
        """
        ensemble = self.ensemble.perturbations(key)
        draw = jax.random.normal(key, (len(ensemble), self.static.white_size), ensemble.dtype)
        return jnp.concatenate([(draw - draw.mean(axis=0)) / math.sqrt(len(ensemble) - 1), ensemble], axis=1)


class EnsembleCycled(NamedTuple):
    """A series of analyses of an ensemble.

    Args:
        analysis: mean at the start of each window `(windows, *state)`.
        newest: mean of the members carried to the last observation of their window `(windows, *state)`.
        spread: standard deviation of these members `(windows, *state)`.
        solve: how each minimisation ended.
    """

    analysis: jax.Array
    newest: jax.Array
    spread: jax.Array
    solve: Solve


class EnsembleCycle:
    """A cycle whose background covariance is that of the day: members go through the windows with the analysis.

    Every window is minimised once, around the mean of the members, with B from `covariance(members)`. The anomalies then become
    a_k' = S (JᵀJ)^{−½} αₖ with S αₖ anomalies of covariance B, as a square-root filter makes them: of the covariance of the posterior.
    With B = `Localised(members)` this is the iterative ensemble smoother with exact tangents
    (Bocquet & Sakov 2014, *An iterative ensemble Kalman smoother*), with `Hybrid` a hybrid 4D-Var that keeps its ensemble alive.

    Args:
        method: `IncrementalFourDVar` or `StrongFourDVar`; its background covariance is replaced.
        step: M, from one observed time to the next.
        covariance: from members `(members, size)` to a `Localised` or `Hybrid`; `Localised` unless told.
        inflation: factor of the anomalies after each analysis.
        window, shift, reuse: as `Cycle`; an ensemble remembers the earlier observations, so that to use them again counts them twice.

    Raises:
        ConfigError: another method, an inflation that is not positive, as `Cycle`.

    Example:
        >>> cycle = EnsembleCycle(method, step, covariance=lambda x: Hybrid(B, Localised(x), 0.5))
        >>> cycle.run(ensemble, observations).newest.shape      # ensemble (10, 3)
        (401, 3)
    """

    def __init__(
        self, method: VariationalMethod, step: Callable[[jax.Array], jax.Array], *,
        covariance: Callable[[Any], Any] | None = None, inflation: float = 1.0, window: int = 1, shift: int = 1, reuse: bool = False,
    ) -> None:  # fmt: skip
        if not isinstance(method, StrongFourDVar | IncrementalFourDVar):
            raise ConfigError(f"expected a method of strong constraint, got {type(method).__name__}; do use IncrementalFourDVar")
        basis = getattr(method, "basis", None)
        require(basis is None, "a method without basis", "one with a basis", "drop it: the ensemble is a basis by itself")
        require(0 < inflation < math.inf, "a positive inflation", inflation, "pass a number such as 1.02")
        self.method, self.step, self.inflation = method, step, inflation
        self.covariance = Localised if covariance is None else covariance
        self.windows = Windows(window, shift, reuse)
        self.windows.check(method)

    def run(self, members: Any, observations: Any, mask: Any = None, *, key: jax.Array | None = None) -> EnsembleCycled:
        """The series from a first ensemble.

        Args:
            members: `(members, *state)` one step before the first observation; of a method that observes its start, at it.
            observations: `(times, *obs)`; NaN is unobserved.
            mask: 1 observed, 0 not; of the shape of the observations.
            key: of the static part of a `Hybrid`; without one nothing is drawn.
        """
        key = jax.random.key(0) if key is None else key
        members = jnp.asarray(members, jnp.result_type(float))
        shape = self.method.state_shape
        require(members.ndim == len(shape) + 1 and members.shape[1:] == shape, f"members (members, {', '.join(map(str, shape))})",
                members.shape, "pass one state for each")  # fmt: skip

        def analyse(carry: Any, rows: jax.Array, seen: jax.Array) -> tuple[Any, EnsembleCycled]:
            members, key = carry
            following_key, key = jax.random.split(key)
            mean = members.mean(axis=0)
            covariance = self.covariance(members.reshape(len(members), -1))
            method = self.method.with_background_cov(covariance)
            analysis, problem = method._one(Batch(input=rows, mask=seen, background=mean))
            control = analysis.solve.control
            root = GaussNewtonHessian().root(problem, control, method.minimiser, jax.random.key(0))
            anomalies = jax.vmap(lambda a: covariance.root(root(a)).reshape(shape))(covariance.perturbations(key))
            scale = self.inflation * math.sqrt(len(members) - 1)
            later = len(rows) - self.method.observed_at_start
            states = jax.vmap(lambda x: trajectory(self.step, x, later))(analysis.state + scale * anomalies)
            following = jax.vmap(lambda window: follow(window, self.windows.shift, self.step))(states)
            mean, spread = states[:, -1].mean(axis=0), states[:, -1].std(axis=0, ddof=1)
            return (following, following_key), EnsembleCycled(analysis.state, mean, spread, analysis.solve)

        return self.windows.scan(self.method, analyse, (members, key), observations, mask)
