"""The flow families by name: which elementwise map, made a layer how, mixed by what."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import distrax
import jax
import jax.numpy as jnp
from flax import nnx

from vardax_flax.flows.layers import Autoregressive, Coupling, Elementwise, Transform
from vardax_flax.flows.monotone import Bernstein, Integrated, LogisticMixture, Neural, SumOfSquares
from vardax_flax.flows.spline import CircularShift, RationalQuadraticSpline
from vardax_flax.flows.stack import FlowStack
from vardax_flax.nn import soft_clip

MAX_LOG_SCALE = 4.0  # of one affine map
UNITS = 8  # hidden units of the maps that are networks themselves

MakeTransform = Callable[[int, float], Transform]  # of the number of bins and the bound


class Family(NamedTuple):
    """A flow family.

    Args:
        layer: how its elementwise map becomes a layer.
        transform: the map, from the number of bins (components of a mixture, degree of a polynomial) and the bound.
        mixing: what stands between layers unless told otherwise.
    """

    layer: type[Coupling] | type[Autoregressive] | type[Elementwise]
    transform: MakeTransform
    mixing: Literal["permutation", "lu"] = "permutation"


def _affine(raw: jax.Array) -> distrax.Bijector:
    shift, log_scale = jnp.split(raw, 2)
    return distrax.ScalarAffine(shift=shift[0], log_scale=soft_clip(log_scale[0], MAX_LOG_SCALE))


def shift(bins: int, bound: float) -> Transform:
    """x + t."""
    return Transform(1, lambda raw: distrax.ScalarAffine(shift=raw[0], scale=jnp.ones((), raw.dtype)))


def affine(bins: int, bound: float) -> Transform:
    """e^s x + t, |s| ≤ 4."""
    return Transform(2, _affine)


def spline(bins: int, bound: float) -> Transform:
    """e^s x + t, then a rational-quadratic spline on ± bound."""

    def bijector(raw: jax.Array) -> distrax.Bijector:
        shift_and_scale, rest = jnp.split(raw, [2])  # the gradient of a split is one array, that of two slices a sum of two
        return distrax.Chain([RationalQuadraticSpline(rest, bound), _affine(shift_and_scale)])

    return Transform(3 * bins + 1, bijector)


def circular(bins: int, bound: float) -> Transform:
    """On the circle of circumference 2 · bound: turned by t, then a periodic rational-quadratic spline; the identity outside."""

    def bijector(raw: jax.Array) -> distrax.Bijector:
        turn, rest = jnp.split(raw, [1])
        return distrax.Chain([RationalQuadraticSpline(rest, bound, circular=True), CircularShift(turn[0], bound)])

    return Transform(3 * bins + 1, bijector)


FAMILIES = {
    "nice": Family(Coupling, shift),
    "affine": Family(Coupling, affine),
    "spline": Family(Coupling, spline),
    "maf": Family(Autoregressive, affine),
    "nsf": Family(Autoregressive, spline),
    "ncsf": Family(Autoregressive, circular),
    "naf": Family(Autoregressive, lambda bins, bound: Transform(2 + 3 * UNITS, lambda raw: Neural(raw, bound))),
    "unaf": Family(Autoregressive, lambda bins, bound: Transform(2 + 3 * UNITS, lambda raw: Integrated(raw, bound))),
    "sospf": Family(Autoregressive, lambda bins, bound: Transform(SumOfSquares.PARAMETERS, lambda raw: SumOfSquares(raw, bound))),
    "bpf": Family(Autoregressive, lambda bins, bound: Transform(2 * bins + 1, lambda raw: Bernstein(raw, bound))),
    "gf": Family(Elementwise, lambda bins, bound: Transform(3 * bins, lambda raw: LogisticMixture(raw, bound)), "lu"),
}


@functools.lru_cache(maxsize=64)
def _transform(make: MakeTransform, bins: int, bound: float) -> Transform:
    return make(bins, bound)  # one object for each kind: flows of one shape are then equal, and share their compiled programs


def build_flow(
    name: str,
    dim: int,
    context_features: int,
    *,
    layers: int,
    bins: int = 8,
    bound: float = 6.0,
    width: int = 64,
    depth: int = 2,
    mixing: Literal["permutation", "lu"] | None = None,
    rngs: nnx.Rngs,
) -> FlowStack:
    """A flow of so many layers of one family.

    Example:
        >>> flow = build_flow("nsf", 2, 16, layers=5, rngs=nnx.Rngs(0))
        >>> z, log_det = flow.forward(x, context)
    """
    family = FAMILIES[name]
    transform = _transform(family.transform, bins, bound)

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return family.layer(dim, context_features, transform, width=width, depth=depth, rngs=rngs)

    return FlowStack(dim, layers, make, mixing or family.mixing, rngs=rngs)
