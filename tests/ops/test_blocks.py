"""Blocks change no value, are traced once, and hold few rows that were not asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.heads.sampling import BLOCK, in_blocks
from vardax_flax.ops.blocks import map_blocks, widest


@pytest.mark.parametrize(("n", "most"), [(1, 1), (5, 8), (8, 8), (9, 8), (17, 8), (5, 1)])
def test_blocks_are_of_one_size_and_traced_once(n, most):
    sizes = []

    def function(rows):
        sizes.append(len(rows["a"]))
        return rows["a"] + rows["b"].sum(axis=1), rows["b"]

    rows = {"a": jnp.arange(float(n)), "b": jnp.arange(2.0 * n).reshape(n, 2)}
    total, same = jax.jit(lambda rows: map_blocks(function, rows, most))(rows)
    np.testing.assert_array_equal(total, rows["a"] + rows["b"].sum(axis=1))
    np.testing.assert_array_equal(same, rows["b"])
    assert len(sizes) == 1
    assert sizes[0] <= most
    assert sizes[0] * -(-n // most) - n < -(-n // most)  # less than one row too many in each block


@pytest.mark.parametrize(("elements", "n"), [(1, 1), (1, 99), (3, 100), (40, 7), (2, BLOCK), (5, 2 * BLOCK + 1)])
def test_few_draws_are_made_that_nobody_asked_for(elements, n):
    made = []

    def draw(context, noise):
        made.append(noise.shape[0] * noise.shape[1])
        return noise + context[:, None]

    context, noise = jnp.arange(float(elements))[:, None], jnp.arange(2.0 * elements * n).reshape(elements, n, 2)
    programs = jax.make_jaxpr(lambda c, e: in_blocks(draw, c, e, n, 2))(context, noise)
    lengths = [equation.params["length"] for equation in programs.eqns if equation.primitive.name == "scan"] or [1]
    assert elements * n <= made[0] * lengths[0] <= 1.5 * elements * n
    np.testing.assert_array_equal(in_blocks(draw, context, noise, n, 2), noise + context[:, None])


def test_the_widest_array_is_found_in_loops_and_branches_and_shared_ones_do_not_count():
    row, shared = jax.ShapeDtypeStruct((7,), jnp.float32), jnp.ones((300, 7))

    def grows(x):
        return jax.lax.scan(lambda carry, _: (carry + jnp.outer(x, x).sum(), None), 0.0, length=3)[0]

    assert widest(lambda x: x + 1, row) == 7
    assert widest(lambda x: (x[:, None] * x).sum(), row) == 49
    assert widest(grows, row) == 49
    branches = jnp.sum, lambda x: jnp.outer(x, x).sum()
    assert widest(lambda x: jax.lax.cond(x[0] > 0, *branches, x), row) == 49
    # asked of all rows at once, a branch stays a branch
    assert widest(lambda x: jax.lax.cond(jax.lax.optimization_barrier(shared).sum() > 0, *branches, x), row) == 49
    assert widest(lambda x: x @ (shared.T @ shared), row) == 7
    assert widest(lambda x, y: x.sum() * y.sum(), row, jax.ShapeDtypeStruct((2, 3), jnp.float32)) == 1
    assert widest(lambda x: jax.jit(jax.vmap(lambda a: a * x))(shared).sum(), row) == 2100
