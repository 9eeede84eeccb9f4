"""`initialise` gives what eager initialisation gives, in one program that is compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vardax_flax.nn import initialise


class Net(nnx.Module):
    def __init__(self, rngs, widths):
        self.layers = nnx.List([nnx.Linear(3, width, rngs=rngs) for width in widths])
        self.noise = nnx.Variable(jax.random.normal(rngs.noise(), (4,)))


@pytest.mark.parametrize("widths", [(4, 5), [4, 5]], ids=["hashable", "not hashable"])
def test_it_draws_what_eager_initialisation_draws(widths):
    eager, compiled = (nnx.Rngs(0, noise=1) for _ in range(2))
    expected, found = Net(eager, widths), initialise(Net, compiled, widths)
    assert nnx.split(expected)[0] == nnx.split(found)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), nnx.state(expected), nnx.state(found))
    np.testing.assert_array_equal(eager.noise.count[...], compiled.noise.count[...])
    assert not jnp.array_equal(initialise(Net, compiled, widths).noise[...], found.noise[...])  # the counts went on


def test_the_second_module_is_not_compiled_and_is_another_one(compiled):
    initialise(Net, nnx.Rngs(0), (2, 3))
    programs = len(compiled)
    first, second = (initialise(Net, nnx.Rngs(seed), (2, 3)) for seed in (1, 2))
    assert len(compiled) == programs
    before = second.layers[0].kernel[...].copy()
    first.layers[0].kernel[...] = jnp.zeros((3, 2))
    np.testing.assert_array_equal(second.layers[0].kernel[...], before)


def test_inside_a_program_of_the_caller():
    shapes = nnx.eval_shape(lambda: initialise(Net, nnx.Rngs(0), (4, 5)))
    assert shapes.layers[1].kernel.shape == (3, 5)
