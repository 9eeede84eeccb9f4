"""Is the adjoint of a model its own? The dot-product test of tangent and adjoint, and the Taylor test of the tangent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.config import require
from vardax_flax.ops.precision import full_precision
from vardax_flax.validation.result import GateResult, assert_passed

Function = Callable[[jax.Array], jax.Array]
DOT_LIMIT = 100.0  # of eps; an exact adjoint measures about 1
SLOPES = (1.8, 2.2)
CONSECUTIVE = 3
REACH = 1e-10  # remainder, relative to ‖M‖, that slopes of 2 must go down to
STEPS = 2.0 ** np.arange(4, -31, -1)  # of the Taylor test, relative to the size of the state


def dot_product_test(
    fn: Function, x: Any, *, key: jax.Array, tangent: Function | None = None, adjoint: Function | None = None, n_probes: int = 32
) -> GateResult:
    """Test that an adjoint A is the transpose of the tangent J: ⟨w, J v⟩ = ⟨A w, v⟩.

    The statistic is the largest |⟨w, J v⟩ − ⟨A w, v⟩| / max(‖w‖ ‖J v‖, ‖A w‖ ‖v‖), in units of the rounding eps, over Gaussian v and w and
    once more with w = J v; it is never divided by ⟨w, J v⟩, which may vanish (Claerbout 1992, *Earth soundings analysis*). Passes up
    to 100; an exact adjoint measures about 1.

    Args:
        fn: M, one state ↦ anything of one array.
        x: where to linearise.
        key: of v and w.
        tangent: v ↦ J v; by default that of JAX's forward mode.
        adjoint: w ↦ A w; by default that of JAX's reverse mode.
        n_probes: pairs (v, w).

    Example:
        >>> dot_product_test(jnp.sin, jnp.ones(3), key=jax.random.key(0)).passed
        True
    """
    require(n_probes >= 1, "n_probes >= 1", n_probes, "probe more")
    x = jnp.asarray(x)

    @jax.jit
    @full_precision
    def compute(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        push = (lambda v: jax.jvp(fn, (x,), (v,))[1]) if tangent is None else tangent
        pull = (lambda w: jax.vjp(fn, x)[1](w)[0]) if adjoint is None else adjoint
        v_key, w_key = jax.random.split(key)
        v = jax.random.normal(v_key, (n_probes, *x.shape), x.dtype)
        pushed = jax.vmap(push)(v)
        w = jnp.concatenate([jax.random.normal(w_key, pushed.shape, pushed.dtype), pushed[:1]])
        v, pushed = jnp.concatenate([v, v[:1]]), jnp.concatenate([pushed, pushed[:1]])
        pulled = jax.vmap(pull)(w)
        flat = lambda a: a.reshape(n_probes + 1, -1)  # noqa: E731
        gap = jnp.abs((flat(w) * flat(pushed)).sum(axis=1) - (flat(pulled) * flat(v)).sum(axis=1))
        norm = lambda a: jnp.linalg.norm(flat(a), axis=1)  # noqa: E731
        scale = jnp.maximum(norm(w) * norm(pushed), norm(pulled) * norm(v))
        return jnp.where(scale > 0, gap / jnp.where(scale > 0, scale, 1), gap), scale

    error, scale = (np.asarray(a, np.float64) for a in compute(x, key))
    error = np.where(np.isfinite(scale), error, np.nan) / float(jnp.finfo(x.dtype).eps)
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    passed = bool((error <= DOT_LIMIT).all())
    text = f"{error[worst]:.3g} eps ({'w = J v' if worst == n_probes else f'probe {worst}'})"
    head = "adjoint of its tangent" if passed else "not the adjoint of its tangent"
    summary = f"{head}: dot products differ by {text}, bound {DOT_LIMIT:g}"
    details = {
        "error": error, "scale": scale, "worst": text, "expected": f"dot products that agree to {DOT_LIMIT:g} eps",
        "do": "check custom derivative rules, and what is cut or clipped on one side only",
    }  # fmt: skip
    return GateResult("dot_product", passed, float(error[worst]), DOT_LIMIT, None, summary, details)


def taylor_test(fn: Function, x: Any, *, key: jax.Array, tangent: Function | None = None, n_directions: int = 4) -> GateResult:
    """Test that the tangent is the derivative: ‖M(x + h v) − M(x) − h J v‖ falls as h².

    Of the slopes of its logarithm over halved h, at least 3 consecutive ones lie within [1.8, 2.2], where the remainder exceeds the
    rounding 10 eps ‖M‖, and the last of them below 1e-10 ‖M‖: a derivative wrong by a factor 1 + δ has slopes of 2 too, down to a
    remainder of δ². A remainder that never exceeds the rounding is that of an affine map, and passes.

    Args:
        fn: M, one state ↦ anything of one array, in float64.
        x: where to linearise.
        key: of the directions v, of the size of x.
        tangent: v ↦ J v; by default that of JAX's forward mode.
        n_directions: each must pass.

    Raises:
        ConfigError: single precision, where too few slopes stand above the rounding.

    Example:
        >>> with jax.enable_x64(True):
        ...     taylor_test(jnp.sin, jnp.ones(3), key=jax.random.key(0)).passed
        True
    """
    x = jnp.asarray(x)
    require(x.dtype == jnp.float64, "a state in float64", x.dtype, "run under jax.enable_x64(True)")

    @jax.jit
    @full_precision
    def compute(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, size = fn(x), _norm(x)

        def along(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            v = jax.random.normal(key, x.shape, x.dtype)
            v *= jnp.where(size > 0, size, 1) / _norm(v)
            slope = jax.jvp(fn, (x,), (v,))[1] if tangent is None else tangent(v)

            def remainder(h: jax.Array) -> tuple[jax.Array, jax.Array]:
                moved, linear = fn(x + h * v), h * slope
                return _norm(moved - value - linear), jnp.maximum(jnp.maximum(_norm(moved), _norm(value)), _norm(linear))

            return jax.lax.map(remainder, jnp.asarray(STEPS, x.dtype))

        return jax.lax.map(along, jax.random.split(key, n_directions))

    rest, scale = (np.asarray(a, np.float64) for a in compute(x, key))
    counted = np.isfinite(rest) & np.isfinite(scale) & (rest > 10 * np.finfo(np.float64).eps * scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.log2(rest[:, :-1] / rest[:, 1:])
    good = counted[:, :-1] & counted[:, 1:] & (slopes >= SLOPES[0]) & (slopes <= SLOPES[1])
    longest = np.array([_longest_run(row, small) for row, small in zip(good, rest[:, 1:] < REACH * scale[:, 1:], strict=True)])
    longest = np.where(~counted.any(axis=1) & np.isfinite(rest[:, -1]), len(STEPS), longest)  # affine
    worst, passed = int(np.argmin(longest)), bool(longest.min() >= CONSECUTIVE)
    last = slopes[worst][counted[worst, :-1] & counted[worst, 1:]][-6:].round(2).tolist()
    text = f"{longest[worst]} consecutive slopes near 2 down to the rounding in direction {worst} (last slopes {last})"
    details = {
        "steps": STEPS, "remainder": rest, "slopes": slopes, "counted": counted, "worst": text,
        "expected": f"{CONSECUTIVE} consecutive slopes within [{SLOPES[0]}, {SLOPES[1]}]",
        "do": "check custom derivative rules; slopes of 1 mean a wrong derivative",
    }  # fmt: skip
    summary = f"{'the tangent is the derivative' if passed else 'the tangent is not the derivative'}: {text}"
    return GateResult("taylor", passed, float(longest[worst]), float(CONSECUTIVE), None, summary, details)


def _norm(a: jax.Array) -> jax.Array:
    return jnp.linalg.norm(a.ravel())


def _longest_run(flags: np.ndarray, counts: np.ndarray) -> int:
    """Length of the longest run of flags that ends where it counts."""
    longest = run = 0
    for flag, count in zip(flags, counts, strict=True):
        run = run + 1 if flag else 0
        longest = max(longest, run if count else 0)
    return longest


def assert_tangent_and_adjoint(fn: Function, x: Any, *, key: jax.Array, **options: Any) -> None:
    """Raise unless JAX's (or the given) tangent and adjoint of a function pass the Taylor test and the dot-product test at x, in float64.

    Args:
        fn: one state ↦ anything of one array.
        x: where to linearise.
        key: of the random directions.
        options: `tangent` and `adjoint`, as of `dot_product_test`.

    Raises:
        AssertionError: says which test failed, by how much, and what to do.

    Example:
        >>> with jax.enable_x64(True):
        ...     assert_tangent_and_adjoint(simulator.predict, x, key=jax.random.key(0))
    """
    dot_key, taylor_key = jax.random.split(key)
    assert_passed(dot_product_test(fn, x, key=dot_key, **options))
    assert_passed(taylor_test(fn, x, key=taylor_key, tangent=options.get("tangent")))
