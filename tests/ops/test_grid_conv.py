"""The convolution beside sums written out, and its derivatives of first and second order, in both modes and under vmap."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops.grid_conv import grid_conv

CASES = {
    "1-D": ((2, 7, 3), (3, 3, 4), ((1, 1),)),
    "1-D, even window": ((2, 7, 3), (4, 3, 2), ((1, 2),)),
    "2-D": ((2, 5, 6, 4), (3, 3, 4, 2), ((1, 1), (1, 1))),
    "2-D, one axis without zeros": ((2, 5, 6, 2), (3, 2, 2, 3), ((1, 1), (0, 0))),
    "3-D": ((1, 4, 3, 3, 2), (3, 1, 2, 2, 3), ((1, 1), (0, 0), (0, 1))),
}


def written_out(x, kernel, pad):
    x = jnp.pad(x, [(0, 0), *pad, (0, 0)])
    sizes = kernel.shape[:-2]
    grid = [n - s + 1 for n, s in zip(x.shape[1:-1], sizes, strict=True)]
    total = 0
    for d in itertools.product(*map(range, sizes)):
        total = total + x[(slice(None), *(slice(i, i + n) for i, n in zip(d, grid, strict=True)))] @ kernel[d]
    return total


@pytest.fixture(params=CASES)
def case(request, x64):
    shape, window, pad = CASES[request.param]
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=window)), pad


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-11), a, b)


def test_it_is_the_sum_of_its_definition(case):
    x, kernel, pad = case
    close(grid_conv(x, kernel, pad), written_out(x, kernel, pad))
    close(jax.jit(grid_conv, static_argnums=2)(x, kernel, pad), written_out(x, kernel, pad))


def test_derivatives_of_every_kind(case):
    x, kernel, pad = case

    def of(function):
        value = lambda x, k: jnp.sin(function(x, k, pad)).sum()  # noqa: E731
        gradient = jax.grad(value, (0, 1))
        inner = lambda x, k: sum(jnp.square(g).sum() for g in gradient(x, k))  # noqa: E731
        tangent = jax.jvp(gradient, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))
        return gradient(x, kernel), jax.grad(inner, (0, 1))(x, kernel), tangent, jax.jvp(inner, (x, kernel), (x, kernel))

    close(of(grid_conv), of(written_out))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (2, 1)])
def test_under_vmap(case, axes):
    x, kernel, pad = case
    many = [a if axis is None else jnp.stack([a, 2 * a, a**2], axis=axis) for a, axis in zip((x, kernel), axes, strict=True)]

    def of(function):
        value = lambda x, k: jnp.sin(function(x, k, pad)).sum()  # noqa: E731
        mapped = jax.vmap(lambda x, k: (function(x, k, pad), jax.grad(value, (0, 1))(x, k)), in_axes=axes)
        return mapped(*many), jax.grad(lambda x, k: jax.vmap(value, in_axes=axes)(x, k).sum(), (0, 1))(*many)

    close(of(grid_conv), of(written_out))


def test_in_a_loop_and_rematerialised(case):
    x, kernel, pad = case

    def of(function):
        def total(k):
            step = jax.checkpoint(lambda h, _: (h + 0.1 * jnp.tanh(function(h, k, pad)).sum(), None))
            return jax.lax.scan(step, x, None, length=3)[0].sum()

        return jax.jit(jax.grad(total))(kernel)

    close(of(grid_conv), of(written_out))


def test_half_precision_stays_half():
    x, kernel = jnp.ones((1, 8, 2), jnp.bfloat16), jnp.ones((3, 2, 2), jnp.bfloat16)
    assert grid_conv(x, kernel, ((1, 1),)).dtype == jnp.bfloat16
    assert jax.grad(lambda k: grid_conv(x, k, ((1, 1),)).sum().astype(jnp.float32))(kernel).dtype == jnp.bfloat16
