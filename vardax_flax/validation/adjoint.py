"""Does a fast estimate move with the observation as the oracle's does? Jacobians ∂x̂/∂y compared by random probing, never written out.

With E = J_fast − J_oracle at each of a batch of observations, and Gaussian probes p,

    ρ² = Σ ‖E p‖² / Σ ‖J_oracle p‖²

over observations and probes estimates ‖E‖_F² / ‖J_oracle‖_F², from the right (J v, forward mode) or from the left (Jᵀ w, reverse mode).
Where one function has only the former and the other only the latter, ⟨w, E v⟩² does it.
Its interval is a delete-one-observation jackknife of log ρ² from 30 observations on. With fewer, the limits S m / χ²_m hold for the mean S
of m probes of any linear map (Székely & Bakirov 2003, *Extremal probabilities for Gaussian quadratic forms*).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vardax_flax.core.config import ConfigError, require
from vardax_flax.ops.blocks import map_blocks
from vardax_flax.ops.cores import over_cores
from vardax_flax.ops.precision import full_precision
from vardax_flax.validation.result import GateResult, assert_passed

Function = Callable[..., jax.Array]
LEAST_JACKKNIFE = 30  # observations
ITERATIONS = 30  # of the power iteration
TOGETHER = 64  # observations at once
CROSSED = {"reverse against forward": ("reverse", "forward"), "forward against reverse": ("forward", "reverse")}  # fast, oracle
MORE = 4  # times as many probes, when they are crossed
CANNOT = (TypeError, ValueError, NotImplementedError)  # what JAX raises for a rule of differentiation that does not exist


class _Probed(NamedTuple):
    """Per event: squared norms and inner products `(events, probes)`, and largest singular values `(events,)` of E and of the oracle."""

    error: jax.Array
    oracle: jax.Array
    fast: jax.Array
    inner: jax.Array
    norm_error: jax.Array
    norm_oracle: jax.Array


class _Products(NamedTuple):
    """J v and Jᵀ w of one function at one point."""

    push: Callable[[jax.Array], jax.Array]
    pull: Any  # likewise; None if it is not wanted


def _products(function: Callable[[jax.Array], jax.Array], y: jax.Array, mode: str, both: bool) -> _Products:
    """One product by the mode, and the other by transposing it, for which what is between is kept: only if both are wanted."""
    if mode == "forward":
        if not both:
            return _Products(lambda v: jax.jvp(function, (y,), (v,))[1], None)
        _, push = jax.linearize(function, y)
        return _Products(push, lambda w: jax.linear_transpose(push, y)(w)[0])
    value, back = jax.vjp(function, y)
    return _Products(lambda v: jax.linear_transpose(lambda w: back(w)[0], value)(v)[0], lambda w: back(w)[0])


def _largest(push: Callable, pull: Callable, start: jax.Array) -> jax.Array:
    """‖E‖₂ by power iteration on EᵀE, from below."""

    def step(v: jax.Array, _: None) -> tuple[jax.Array, None]:
        v = pull(push(v))
        size = jnp.linalg.norm(v)
        return v / jnp.where(size > 0, size, 1), None

    v = jax.lax.scan(step, start / jnp.linalg.norm(start), length=ITERATIONS)[0]
    return jnp.linalg.norm(push(v))


def _square(x: jax.Array) -> jax.Array:
    return jnp.square(x).sum(axis=-1)


def _crossed(fast: _Products, oracle: _Products, sides: tuple[str, str], right: jax.Array, left: jax.Array) -> _Probed:
    """The number ⟨w, J v⟩ of each by the product that it has: the mean square of ⟨w, E v⟩ is ‖E‖_F² too, with more noise."""
    ahead = [side == "forward" for side in sides]
    moved = [jax.vmap(p.push)(right) if forward else jax.vmap(p.pull)(left) for p, forward in zip((fast, oracle), ahead, strict=True)]
    numbers = [((left if forward else right) * product).sum(axis=-1) for product, forward in zip(moved, ahead, strict=True)]
    none = jnp.full((), jnp.nan, right.dtype)
    return _Probed(jnp.square(numbers[0] - numbers[1]), _square(moved[1]), _square(moved[0]), numbers[0] * numbers[1], none, none)


@functools.partial(over_cores, static_argnames=("fn_fast", "fn_oracle", "n_probes", "mode", "norms"))
@full_precision
def _probe(
    items: tuple[jax.Array, Any, jax.Array], key: jax.Array, *,
    fn_fast: Function, fn_oracle: Function, n_probes: int, mode: str, norms: bool,
) -> _Probed:  # fmt: skip
    """What the probes of each event see, of its (y, arguments, number)."""

    def one(item: tuple[jax.Array, Any, jax.Array]) -> _Probed:
        y, args, index = item
        shape, start = y.shape, y.ravel()

        def flat(function: Function) -> Callable[[jax.Array], jax.Array]:
            return lambda v: jnp.ravel(function(v.reshape(shape), *args))

        sides = CROSSED.get(mode, (mode, mode))
        fast, oracle = (_products(flat(f), start, side, norms) for f, side in zip((fn_fast, fn_oracle), sides, strict=True))
        size = jax.eval_shape(fn_oracle, y, *args).size
        probe_key, power_key = jax.random.split(jax.random.fold_in(key, index))
        if mode in CROSSED:
            right_key, left_key = jax.random.split(probe_key)
            right = jax.random.normal(right_key, (MORE * n_probes, start.size), y.dtype)
            left = jax.random.normal(left_key, (MORE * n_probes, size), y.dtype)
            return _crossed(fast, oracle, sides, right, left)
        probes = jax.random.normal(probe_key, (n_probes, start.size if mode == "forward" else size), y.dtype)
        a, b = (jax.vmap(p.push if mode == "forward" else p.pull)(probes) for p in (fast, oracle))
        norm_error = norm_oracle = jnp.full((), jnp.nan, y.dtype)
        if norms:
            v = jax.random.normal(power_key, start.shape, y.dtype)
            norm_error = _largest(lambda v: fast.push(v) - oracle.push(v), lambda w: fast.pull(w) - oracle.pull(w), v)
            norm_oracle = _largest(oracle.push, oracle.pull, v)
        return _Probed(_square(a - b), _square(b), _square(a), (a * b).sum(axis=-1), norm_error, norm_oracle)

    return map_blocks(jax.vmap(one), items, TOGETHER)


@functools.partial(over_cores, static_argnames=("fn_fast", "fn_oracle", "covector"))
@full_precision
def _along(items: tuple[jax.Array, Any], *, fn_fast: Function, fn_oracle: Function, covector: Function) -> jax.Array:
    """‖J_fastᵀ w − J_oracleᵀ w‖ / ‖J_oracleᵀ w‖ of each event, of its (y, arguments)."""

    def one(item: tuple[jax.Array, Any]) -> jax.Array:
        y, args = item
        _, fast = jax.vjp(lambda y: fn_fast(y, *args), y)
        value, exact = jax.vjp(lambda y: fn_oracle(y, *args), y)
        w = covector(value, *args)
        a, b = (jnp.ravel(back(w)[0]) for back in (fast, exact))
        return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)

    return map_blocks(jax.vmap(one), items, TOGETHER)


def _along_covector(items: tuple[jax.Array, Any], covector: Function | None, functions: dict[str, Function]) -> np.ndarray | None:
    """`_along`, before anything else has been computed: what is wrong with the covector costs nothing."""
    if covector is None:
        return None
    y, *args = jax.tree.map(lambda leaf: leaf[0], (items[0], *items[1]))
    value = jax.eval_shape(functions["fn_oracle"], y, *args)
    w = jax.eval_shape(covector, value, *args)
    require(w.shape == value.shape, f"a covector of shape {value.shape}", w.shape, "return one number for each of the estimate's")
    try:
        return np.asarray(_along(items, covector=covector, **functions), np.float64)
    except CANNOT as error:
        raise ConfigError(f"expected functions with reverse mode for the covector, got {error}; do leave the covector out") from error


def _first_possible(attempt: Callable[[str, bool], _Probed], mode: str, operator_norm: bool) -> tuple[_Probed, str]:
    """Forward mode if both functions have it, else reverse, else each by its own; with the operator norm if it is wanted and possible."""
    modes = ("forward", "reverse") if mode == "auto" else (mode,)
    choices = [(m, norms) for norms in ((True, False) if operator_norm else (False,)) for m in modes]
    choices += [(m, False) for m in CROSSED if mode == "auto"]
    for m, norms in choices[:-1]:
        try:
            return attempt(m, norms), m
        except CANNOT:
            continue
    return attempt(*choices[-1]), choices[-1][0]


def _jackknife(error: np.ndarray, oracle: np.ndarray, level: float) -> tuple[float, float]:
    n = len(error)
    left = np.log(error.sum() - error) - np.log(oracle.sum() - oracle)
    se = math.sqrt((n - 1) / n * float(np.square(left - left.mean()).sum()))
    middle, reach = math.log(error.sum() / oracle.sum()), float(stats.t.isf(level / 2, n - 1)) * se
    return math.exp(0.5 * (middle - reach)), math.exp(0.5 * (middle + reach))


def _any_linear(error: float, oracle: float, n_probes: int, level: float) -> tuple[float, float]:
    low, high = (float(stats.chi2.ppf(q, n_probes)) for q in (level / 4, 1 - level / 4))
    return math.sqrt(error / oracle * low / high), math.sqrt(error / oracle * high / low)


def _interval(error: np.ndarray, oracle: np.ndarray, n_probes: int, level: float) -> tuple[float, float]:
    """Lower and upper limit of ρ, from the sums over probes of each observation."""
    if error.sum() == 0:
        return 0.0, 0.0
    if len(error) >= LEAST_JACKKNIFE and np.count_nonzero(error) > 1:
        return _jackknife(error, oracle, level)
    return _any_linear(float(error.sum()), float(oracle.sum()), n_probes, level)


def adjoint_calibration(
    fn_fast: Function,
    fn_oracle: Function,
    y: Any,
    *,
    key: jax.Array,
    threshold: float = 0.05,
    n_probes: int = 10,
    mode: Literal["auto", "forward", "reverse"] = "auto",
    args: tuple[Any, ...] = (),
    level: float = 0.05,
    operator_norm: bool = True,
    covector: Function | None = None,
) -> GateResult:
    """Compare how two estimates move with the observation: the relative error ρ = ‖J_fast − J_oracle‖_F / ‖J_oracle‖_F over a batch.

    Passes if the upper limit of ρ is at most the threshold, fails if the lower limit exceeds it; between them there is no verdict, and
    `do` says to add probes. In which units: those of y and of what the functions return, so whiten both inside them where units differ.

    Args:
        fn_fast: one observation `(*obs)` ↦ estimate, and for each of `args` the part of that observation; called in threads.
        fn_oracle: likewise, of the same shape.
        y: `(events, *obs)`.
        key: of the probes.
        threshold: of ρ.
        n_probes: for each event.
        mode: "forward" needs jvp, "reverse" vjp; "auto" takes the first that both functions have, else crosses ⟨w, J v⟩ by the one with
            ⟨Jᵀ w, v⟩ by the other, with four times the probes and no interval below 30 observations.
        args: arrays or pytrees with a leading axis of events: a mask, a background.
        level: one minus the confidence of the interval.
        operator_norm: find ‖E‖₂ too, which takes as long to compile as all the rest.
        covector: the oracle's estimate, and `args` ↦ w of its shape, of which J_fastᵀ w is compared too: w = R⁻¹ (H(M(x)) − y) where the
            functions are H ∘ M of a model and of its emulator, whose adjoint will carry the gradient of a 4D-Var cost. In reverse mode.

    Returns:
        `statistic` is ρ, `bound` the threshold. `details`: `lower` and `upper`; `per_probe` ‖E p‖ / ‖J_oracle p‖ `(events, probes)`;
        `per_event` `(events,)`; root-mean-square Frobenius norms; `cosine` of the angle between the Jacobians; `operator_norm` ‖E‖₂ and
        `operator_norm_ratio` ‖E‖₂ / ‖J_oracle‖₂ `(events,)` by power iteration on EᵀE, NaN where a product cannot be transposed; `mode`;
        `covector_error` ‖J_fastᵀ w − J_oracleᵀ w‖ / ‖J_oracleᵀ w‖ `(events,)`, reported and not judged, NaN where w is 0.

    Raises:
        ConfigError: sizes too small, shapes that differ, an oracle that does not depend on y, a covector without reverse mode.

    Example:
        >>> adjoint_calibration(lambda y: model_mean(y), lambda y: exact_mean(y), y, key=jax.random.key(0)).passed
        True
    """
    require(n_probes >= 2, "n_probes >= 2", n_probes, "probe more")  # long: most of it is the docstring
    require(threshold > 0 and 0 < level < 1, "threshold > 0 and 0 < level < 1", (threshold, level), "correct them")
    require(mode in ("auto", "forward", "reverse"), "mode auto, forward or reverse", repr(mode), "pick one")
    y = jnp.asarray(y)
    require(y.ndim >= 1 and len(y) >= 1, "observations (events, *obs)", y.shape, "add the axis of events")
    first = jax.tree.map(lambda leaf: leaf[0], (y, *args))
    shapes = [jax.eval_shape(f, *first).shape for f in (fn_fast, fn_oracle)]
    require(shapes[0] == shapes[1], f"an estimate of shape {shapes[1]}", shapes[0], "compare the same state")
    along = _along_covector((y, args), covector, {"fn_fast": fn_fast, "fn_oracle": fn_oracle})

    def attempt(mode: str, norms: bool) -> _Probed:
        return _probe((y, args, jnp.arange(len(y))), key, fn_fast=fn_fast, fn_oracle=fn_oracle, n_probes=n_probes, mode=mode, norms=norms)

    probed, used = _first_possible(attempt, mode, operator_norm)
    probed = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), probed)
    finite = bool(np.isfinite(probed.error).all() and np.isfinite(probed.oracle).all())
    require(not finite or bool(probed.oracle.any()), "an oracle that depends on y", "a Jacobian of zeros", "pass another oracle")
    result = _verdict(probed, finite, threshold, level, used)
    return result if along is None else _told_along(result, along)


def _told_along(result: GateResult, along: np.ndarray) -> GateResult:
    known = np.isfinite(along)
    text = "without a value in any event"
    if known.any():
        worst = int(np.argmax(np.where(known, along, -1)))
        text = f"{np.median(along[known]):.3g} (median of {known.sum()} events; worst event {worst}: {along[worst]:.3g})"
    return result._replace(summary=f"{result.summary}; along the covector {text}", details=result.details | {"covector_error": along})


def _verdict(probed: _Probed, finite: bool, threshold: float, level: float, mode: str) -> GateResult:
    n_events, n_probes = probed.error.shape
    error, oracle = (np.asarray(v).sum(axis=1) for v in (probed.error, probed.oracle))
    rho = math.sqrt(error.sum() / oracle.sum()) if finite else math.nan
    lower, upper = _interval(error, oracle, n_probes, level) if finite else (math.nan, math.nan)
    if mode in CROSSED and n_events < LEAST_JACKKNIFE and error.any():
        lower, upper = 0.0, math.inf  # products of two probes have no such limits
    passed = False if not finite or lower > threshold else True if upper <= threshold else None
    with np.errstate(divide="ignore", invalid="ignore"):
        per_event, ratio = np.sqrt(error / oracle), np.asarray(probed.norm_error / probed.norm_oracle)
        per_probe = np.sqrt(probed.error / probed.oracle)
        cosine = float(np.sum(probed.inner) / math.sqrt(np.sum(probed.fast) * oracle.sum()))
    worst = int(np.argmax(np.where(np.isnan(per_event), np.inf, per_event)))
    text = f"relative error {rho:.3g} in [{lower:.3g}, {upper:.3g}] (worst event {worst}: {per_event[worst]:.3g})"
    do = "train longer, or with sobolev_weight > 0, which learns the derivative" if finite else "find where the derivative is not finite"
    details = {
        "lower": lower, "upper": upper, "level": level, "per_probe": per_probe, "per_event": per_event,
        "frobenius_error": math.sqrt(error.mean() / n_probes) if finite else math.nan,
        "frobenius_oracle": math.sqrt(oracle.mean() / n_probes) if finite else math.nan,
        "operator_norm": probed.norm_error, "operator_norm_ratio": ratio, "cosine": cosine, "mode": mode, "n_probes": n_probes,
        "threshold": threshold, "expected": f"a relative error of the Jacobian <= {threshold:g}", "worst": text,
        "do": do if passed is not None else f"add probes (n_probes > {n_probes}) or events: the interval contains the bound",
        "inconclusive": passed is None,
    }  # fmt: skip
    head = {True: "moves with the observation as the oracle does", False: "moves otherwise than the oracle", None: "inconclusive"}[passed]
    norm = "" if np.isnan(ratio).all() else f", operator norm {np.nanmedian(ratio):.3g} (median)"
    summary = f"{head}: {text}{norm}, cosine {cosine:.4f}; bound {threshold:g} ({n_events} events × {n_probes} probes, {mode} mode)"
    return GateResult("adjoint calibration", passed, rho, threshold, None, summary, details)


def assert_adjoint_calibrated(fn_fast: Function, fn_oracle: Function, y: Any, *, key: jax.Array, **options: Any) -> GateResult:
    """Raise unless a fast estimate moves with the observation as the oracle's; options as for `adjoint_calibration`.

    Raises:
        AssertionError: names ρ, its interval, the worst event, the bound and what to do; also where the interval contains the bound.

    Example:
        >>> result = assert_adjoint_calibrated(model_mean, exact_mean, y, key=jax.random.key(0), threshold=0.05)
    """
    result = adjoint_calibration(fn_fast, fn_oracle, y, key=key, **options)
    assert_passed(result)
    return result
