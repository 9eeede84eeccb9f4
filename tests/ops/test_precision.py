"""Products that numbers depend on are taken in full precision, also where a device would round their factors."""

import jax
import jax.numpy as jnp
import pytest

from vardax_flax.core.interfaces import Simulator
from vardax_flax.ops import gaussian
from vardax_flax.ops.cubic import CUBIC
from vardax_flax.ops.frames import LINEAR
from vardax_flax.ops.gauss_newton import gauss_newton
from vardax_flax.ops.rosenblatt import WALK
from vardax_flax.simulators import LinearGaussian
from vardax_flax.streams import counters, simulate_batch
from vardax_flax.streams.seeds import Domain

MATRIX = jnp.ones((4, 3))
SIMULATOR: Simulator = LinearGaussian.random(3, 4)


def residual(x):
    return jnp.concatenate([x, MATRIX @ x])


def frame(map):
    return map.frame(residual, gauss_newton(lambda x, _: residual(x), jnp.ones(3), jnp.arange(2)))


MAPS = {"linear": LINEAR, "walk": WALK, "cubic": CUBIC}
CASES = {
    "simulate": lambda: simulate_batch(SIMULATOR, 0, counters(Domain.TRAIN, 0, slice(0, 2))),
    "gauss_newton": lambda: gauss_newton(lambda x, _: MATRIX @ x, jnp.ones(3), jnp.arange(2)),
    **{f"{name} frame": lambda map=map: frame(map) for name, map in MAPS.items()},
    **{f"{name} to_normal": lambda map=map: map.to_normal(residual, frame(map), jnp.ones(3)) for name, map in MAPS.items()},
    **{f"{name} from_normal": lambda map=map: map.from_normal(residual, frame(map), jnp.ones(3)) for name, map in MAPS.items()},
    "condition": lambda: gaussian.condition(jnp.zeros(3), jnp.eye(3), MATRIX, jnp.eye(4), jnp.ones(4)),
}


def products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("name", CASES)
def test_products_are_in_full_precision(name):
    found = list(products(jax.make_jaxpr(CASES[name])().jaxpr))
    assert found
    for equation in found:
        assert "HIGHEST" in str(equation.params["precision"]), equation
    plain = list(products(jax.make_jaxpr(lambda: MATRIX @ jnp.ones(3))().jaxpr))
    assert "HIGHEST" not in str(plain[0].params["precision"])
