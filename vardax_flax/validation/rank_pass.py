"""One jitted pass that simulates, samples and ranks, shared by every gate that lives on ranks.

Each run n has keys of its own, folded in from its number, so that neither the size of a chunk nor the number of runs changes any of them.
What remains is rounding: two values that agree to the last digits of the precision in use may swap their order, a rank moved by one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import Posterior, Simulator
from vardax_flax.core.remember import remembered
from vardax_flax.ops.blocks import map_blocks, widest
from vardax_flax.ops.cores import over_cores
from vardax_flax.ops.precision import full_precision
from vardax_flax.validation.quantities import (
    PILOT_SIZE,
    Pilot,
    Quantity,
    default_quantities,
    make_pilot,
    state_quantities,
    tracked_dimensions,
)
from vardax_flax.validation.ranks import randomised_ranks
from vardax_flax.validation.result import GateResult

# numbers of one array that runs at once may hold: what a CPU core does best with, or what fills an accelerator
CACHED_NUMBERS, CHUNK_NUMBERS = 2**15, 2**24
USUAL_WIDTH = 64  # for each draw, where no log q is asked for


class RankPass(NamedTuple):
    """Ranks of the true state among posterior draws.

    Args:
        names: of the m test quantities.
        ranks: int `(N, m)` in {0 … L}; -1 where the run failed.
        n_samples: L.
        failed: `(N,)` True where a draw, the truth or a quantity was not finite.
        dimensions: `(d,)` indices of the flat state that `zscore` and `contraction` follow.
        zscore: `(N, d)` (posterior mean - truth) / posterior standard deviation.
        contraction: `(N, d)` 1 - posterior variance / prior variance.
        skipped: quantities that could not be computed, with the reason.
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    n_samples: int
    failed: np.ndarray
    dimensions: np.ndarray
    zscore: np.ndarray
    contraction: np.ndarray
    skipped: dict[str, str]


def refused(name: str, ranked: RankPass, level: float, details: dict[str, Any]) -> GateResult | None:
    """The verdict of a gate on ranks where runs failed, for no run is ever dropped; None if none did."""
    count, n_runs = int(ranked.failed.sum()), len(ranked.failed)
    if not count:
        return None
    worst = f"{count} of {n_runs} runs with non-finite draws or quantities (first: run {int(np.argmax(ranked.failed))})"
    do = "find out why the model draws NaN or infinity there; no run is ever dropped"
    return GateResult(name, False, math.nan, level, None, f"failed: {worst}", details | {"worst": worst, "do": do})


class _Run(NamedTuple):
    """Outcome of one run."""

    ranks: jax.Array
    failed: jax.Array
    zscore: jax.Array
    contraction: jax.Array


def _observed(element: Batch) -> Batch:
    """The element as a posterior may see it: a model that peeks at the truth must not pass."""
    return element._replace(target=None)


def _missing_density(model: Any, spec: Batch) -> str | None:
    """Why the model has no log q(x | y), or None if it has one. Nothing is computed."""
    if not isinstance(model, Posterior):
        return f"{type(model).__name__} has no log_prob"
    try:
        jax.eval_shape(lambda x, element: model.log_prob(x, element), spec.target, _observed(spec))
    except NotImplementedError as error:
        return f"{type(model).__name__} has no density ({error})"
    return None


def _runs_at_once(model: Any, spec: Batch, n_samples: int, width: int) -> int:
    """As many as fit, of so many numbers for each draw, by the widest array of log q if a model is given."""
    numbers = max(PILOT_SIZE, (n_samples + 1) * (max(width, USUAL_WIDTH) if model is None else width))
    if model is not None:
        states = jax.ShapeDtypeStruct((n_samples + 1, *spec.target.shape), spec.target.dtype)
        numbers = max(numbers, widest(lambda x, element: jax.vmap(lambda x: model.log_prob(x, element))(x), states, _observed(spec)))
    return max(1, (CACHED_NUMBERS if jax.default_backend() == "cpu" else CHUNK_NUMBERS) // numbers)


def _one_run(
    key: jax.Array,
    model: Any,
    simulator: Simulator,
    quantities: Mapping[str, Quantity],
    pilot: Pilot,
    n_samples: int,
    dimensions: np.ndarray,
) -> _Run:
    simulate, draw, tie = jax.random.split(key, 3)
    element = full_precision(simulator.sample)(simulate)
    seen, truth = _observed(element), element.target
    draws = model.sample(seen, draw, n_samples)
    expected = (n_samples, *truth.shape)
    require(draws.shape == expected, f"draws of shape {expected}", draws.shape, "return (n, *state) for one element")
    ranked = jnp.concatenate([truth[None], draws.astype(truth.dtype)])
    values = [jax.vmap(full_precision(lambda x, f=f: f(x, seen)))(ranked) for f in quantities.values()]
    table = jnp.stack([jnp.asarray(v, jnp.result_type(float)) for v in values])
    flat = draws.reshape(n_samples, -1)[:, dimensions]
    failed = ~(jnp.isfinite(draws).all() & jnp.isfinite(truth).all()) | jnp.isnan(table).any()
    ranks = randomised_ranks(table[:, 1:], table[:, 0], tie)
    error = (flat.mean(axis=0) - truth.reshape(-1)[dimensions]) / flat.std(axis=0, ddof=1)
    contraction = 1 - flat.var(axis=0, ddof=1) / pilot.scale[dimensions] ** 2
    return _Run(jnp.where(failed, -1, ranks), failed, error, contraction)


@dataclasses.dataclass(frozen=True)
class _Family:
    """The quantities as a function of the model (None: one without density) and the pilot."""

    simulator: Simulator
    chosen: Any  # a mapping, "marginals" or None
    dim: int

    def __call__(self, model: Any, pilot: Pilot) -> dict[str, Quantity]:
        log_prob = None if model is None else lambda x, element: model.log_prob(x, element)
        if self.chosen is None:
            return default_quantities(log_prob, self.simulator, pilot, self.dim)
        if isinstance(self.chosen, Mapping):
            return dict(self.chosen)
        return state_quantities(pilot, self.dim) | ({} if log_prob is None else {"log q": log_prob})


def rank_pass(
    model: Any,
    simulator: Simulator,
    *,
    key: jax.Array,
    n_runs: int = 1000,
    n_samples: int = 99,
    batch_size: int | None = None,
    quantities: Mapping[str, Quantity] | str | None = None,
) -> RankPass:
    """Simulate N pairs (x*, y) ~ p(x) p(y | x), draw L states from q(x | y) for each and rank x* among them.

    Under q = p(x | y) every rank is uniform on {0 … L} (Talts et al. 2018, *Validating Bayesian inference algorithms with
    simulation-based calibration*).

    Args:
        model: a `Posterior` (`sample(element, key, n)` → `(n, *state)`, `log_prob(x, element)` → scalar), an `nnx.Module` or not. Without a
            density log q is left out and the reason noted.
        simulator: draws the pairs; in JAX.
        key: random key.
        n_runs: N.
        n_samples: L.
        batch_size: runs computed at once on each core; None chooses by memory. Does not change the result beyond rounding.
        quantities: None for the default family, "marginals" for the marginals and log q alone, or functions f(x, element) by name.

    Raises:
        ConfigError: sizes too small, a simulator without target, draws of the wrong shape, or no quantity.

    Example:
        >>> ranked = rank_pass(model, simulator, key=jax.random.key(0), n_runs=1000, n_samples=99)
        >>> sbc, cover = sbc_from_ranks(ranked), coverage_from_ranks(ranked)
    """
    require(n_runs >= 20, "n_runs >= 20", n_runs, "run more")
    require(n_samples >= 9, "n_samples >= 9", n_samples, "draw more")
    require(batch_size is None or batch_size > 0, "batch_size > 0 or None", batch_size, "pass a positive size")
    if isinstance(quantities, str):
        require(quantities == "marginals", "quantities None, 'marginals' or a mapping", repr(quantities), "pass one of them")
    pilot_key, runs_key = jax.random.split(key)
    pilot, sizes = make_pilot(simulator, pilot_key), (n_samples, batch_size)
    if isinstance(model, nnx.Module) and not isinstance(quantities, Mapping):
        structure, weights = nnx.split(model)
        kept = _kept(structure, simulator, quantities, sizes)
        if not kept:
            kept.append(_plan(functools.partial(nnx.merge, structure), model, simulator, quantities, sizes, pilot))
        plan = kept[0]
    else:  # what is not known by its value may be another the next time
        weights, plan = None, _plan(lambda _: model, model, simulator, quantities, sizes, pilot)
    outcome = jax.tree.map(np.asarray, plan.run(np.arange(n_runs), runs_key, weights, pilot))
    lacking = {} if plan.missing is None else {"log q": plan.missing}
    return RankPass(plan.names, outcome.ranks, n_samples, outcome.failed, plan.dimensions, outcome.zscore, outcome.contraction, lacking)


class _Plan(NamedTuple):
    """What depends on neither key nor weights: `run`(runs, key, weights, pilot), names of quantities, dimensions, why there is no log q."""

    run: Callable[..., _Run]
    names: tuple[str, ...]
    dimensions: np.ndarray
    missing: str | None


@remembered
def _kept(structure: Any, simulator: Simulator, quantities: str | None, sizes: tuple[int, int | None]) -> list[_Plan]:
    return []


def _plan(
    merge: Callable[[Any], Any], model: Any, simulator: Simulator, quantities: Any, sizes: tuple[int, int | None], pilot: Pilot
) -> _Plan:
    spec = simulator.spec
    dim = int(np.prod(spec.target.shape, dtype=int))
    own = isinstance(quantities, Mapping)
    missing = None if own else _missing_density(model, spec)
    family, dimensions = _Family(simulator, quantities, dim), tracked_dimensions(dim)
    names = tuple(family(model if missing is None else None, pilot))
    require(len(names) > 0, "at least one quantity", "none", "name one")
    n_samples, batch_size = sizes
    at_once = batch_size or _runs_at_once(None if own or missing else model, spec, n_samples, max(dim, len(names)))
    return _Plan(_program(merge, simulator, family, missing is None, dimensions, n_samples, at_once), names, dimensions, missing)


def _program(
    merge: Callable[[Any], Any], simulator: Simulator, family: Any, has_density: bool, dimensions: np.ndarray, n_samples: int, at_once: int
) -> Callable[..., _Run]:
    """Numbers of runs, key, weights and pilot ↦ the runs, compiled at the first call."""

    def run(runs: jax.Array, runs_key: jax.Array, weights: Any, pilot: Pilot) -> _Run:
        def one(index: jax.Array) -> _Run:
            model = merge(weights)
            chosen = family(model if has_density else None, pilot)
            return _one_run(jax.random.fold_in(runs_key, index), model, simulator, chosen, pilot, n_samples, dimensions)

        return map_blocks(jax.vmap(one), runs, at_once)

    return over_cores(run)
