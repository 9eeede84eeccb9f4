"""Building blocks against what they replace: loops, block averages, NumPy statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.perturb import noise, perturb
from vardax_flax.nn import Conditioner, ConvNet, ResidualMLP, Standardizer, make_stack, pool_grid, scan_stack, soft_clip
from vardax_flax.nn.conv import GridConv


def test_standardizer_and_its_inverse(x64):
    x = 5 + 3 * noise(500, 2, 3)
    standardize = Standardizer((2, 3))
    standardize.calibrate(x)
    z = standardize(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-12)
    np.testing.assert_allclose(standardize.inverse(z), x, atol=1e-12)
    jacobian = jax.jacfwd(lambda x: standardize(x).ravel())(x[0]).reshape(6, 6)
    np.testing.assert_allclose(standardize.log_det(), jnp.linalg.slogdet(jacobian)[1], atol=1e-12)
    assert standardize.log_det() < -1


def test_standardizer_counts_only_what_the_mask_shows(x64):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(2, 3, (400, 3)), rng.random((400, 3)) < 0.5
    mask[:, 2] = False
    standardize = Standardizer((3,))
    standardize.calibrate(jnp.asarray(np.where(mask, x, np.nan)), jnp.asarray(mask, float))
    for i in range(2):
        np.testing.assert_allclose(standardize.mean[i], x[mask[:, i], i].mean())
        np.testing.assert_allclose(standardize.std[i], x[mask[:, i], i].std())
    assert (standardize.mean[2], standardize.std[2]) == (0, 1)  # never observed


@pytest.mark.parametrize("value", [0.0, 1e-3 / 3, 1e4 / 3, 1e8 / 3])
def test_a_constant_component_keeps_its_scale(value):
    standardize = Standardizer((2,))
    x = jnp.stack([jnp.full(10001, value), jnp.arange(10001.0)], axis=-1)
    standardize.calibrate(x)
    assert standardize.std[0] == 1
    np.testing.assert_allclose(standardize(x)[:, 0], 0, atol=1e-6 * max(value, 1))


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e9])
def test_any_unit_will_do(scale):
    x = scale * noise(1000, 1)
    standardize = Standardizer((1,))
    standardize.calibrate(x)
    np.testing.assert_allclose(standardize(x).std(), 1, rtol=1e-4)


def test_a_scanned_stack_is_a_loop_over_its_layers():
    stack = make_stack(lambda r: nnx.Linear(4, 4, rngs=r), 5, nnx.Rngs(0))
    x = noise(3, 4)
    kernel, bias = stack.kernel[...], stack.bias[...]
    assert kernel.shape == (5, 4, 4)
    assert abs(kernel[0] - kernel[1]).max() > 0.01  # layers of their own
    for reverse in (False, True):
        got = scan_stack(stack, lambda layer, h: jnp.tanh(layer(h)), x, reverse=reverse)
        expected = x
        for i in range(5)[:: -1 if reverse else 1]:
            expected = jnp.tanh(expected @ kernel[i] + bias[i])
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_gradients_reach_every_layer_of_a_stack():
    stack = make_stack(lambda r: nnx.Linear(4, 4, rngs=r), 3, nnx.Rngs(0))
    graphdef, state = nnx.split(stack)
    gradient = jax.grad(lambda s: scan_stack(nnx.merge(graphdef, s), lambda layer, h: jnp.tanh(layer(h)), jnp.ones(4)).sum())(state)
    assert (abs(gradient["kernel"][...]).max(axis=(1, 2)) > 0).all()


@pytest.mark.parametrize(("size", "cells"), [(8, 4), (7, 3), (5, 4), (3, 8), (6, 1)])
def test_pooling_averages_blocks_that_partition_the_grid(size, cells, x64):
    h = noise(2, size, 3)
    blocks = [[i for i in range(size) if i * min(cells, size) // size == b] for b in range(min(cells, size))]
    assert sorted(sum(blocks, [])) == list(range(size)) and max(map(len, blocks)) - min(map(len, blocks)) <= 1
    expected = np.stack([np.asarray(h)[:, block].mean(1) for block in blocks], axis=1)
    np.testing.assert_allclose(pool_grid(h, 1, cells), expected.reshape(2, -1), atol=1e-12)


def test_pooling_an_image_averages_its_quarters(x64):
    image = noise(2, 6, 4, 3, seed=1)
    expected = np.asarray(image).reshape(2, 2, 3, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(pool_grid(image, 2, 2), expected.reshape(2, -1), atol=1e-12)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_residual_network_of_any_depth(depth):
    net = perturb(ResidualMLP(4, 3, width=8, depth=depth, rngs=nnx.Rngs(0)))
    x = noise(2, 5, 4)
    out = net(x)
    assert out.shape == (2, 5, 3)
    np.testing.assert_allclose(net(x[1, 2]), out[1, 2], atol=1e-5)
    if depth == 0:
        h = x @ net.first.kernel[...] + net.first.bias[...]
        np.testing.assert_allclose(out, nnx.silu(h) @ net.last.kernel[...] + net.last.bias[...], atol=1e-5)


@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME"])
@pytest.mark.parametrize(("grid", "size"), [((7,), 1), ((7,), 4), ((2,), 5), ((6, 4), 3)])
def test_a_product_of_windows_is_a_convolution(grid, size, padding, x64):
    """Of any size, also one larger than the grid."""
    conv = perturb(GridConv(len(grid), 2, 3, size, padding, rngs=nnx.Rngs(0)))
    reference = nnx.Conv(2, 3, (size,) * len(grid), padding=padding, param_dtype=float, rngs=nnx.Rngs(0))
    reference.kernel[...] = conv.product.kernel[...].reshape(*(size,) * len(grid), 2, 3)
    reference.bias[...] = conv.product.bias[...]
    h = noise(2, 5, *grid, 2)
    expected = reference(h.reshape(10, *grid, 2)).reshape(2, 5, *grid, 3)
    np.testing.assert_allclose(conv(h), expected, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_periodic_convolution_moves_with_the_field(rank):
    sizes = {"in_features": 2, "channels": 4, "depth": 2, "kernel_size": 3, "rngs": nnx.Rngs(0)}
    x = noise(3, *(7, 6)[:rank], 2)
    shift, axes = (2, 3)[:rank], tuple(range(1, rank + 1))
    for padding, equivariant in (("CIRCULAR", True), ("SAME", False)):
        net = jax.jit(perturb(ConvNet(rank, padding=padding, **sizes)))
        there, back = np.asarray(net(x)), np.asarray(net(np.roll(x, shift, axes)))
        assert (abs(back - np.roll(there, shift, axes)).max() < 1e-4) == equivariant
        assert abs(there - back).max() > 0.1


def test_a_conditioner_starts_at_zero_and_shares_its_context():
    fresh = Conditioner(2, 3, 4, width=8, depth=2, rngs=nnx.Rngs(0))  # axes of features first
    x, context = noise(2, 5, 6), noise(3, 5, seed=1)
    assert (fresh(fresh.given(context[..., None]), x) == 0).all()
    net = perturb(fresh)
    shared, repeated = (net.given(c) for c in (context[..., None], jnp.repeat(context[..., None], 6, axis=2)))
    np.testing.assert_allclose(net(shared, x), net(repeated, x), atol=1e-5)
    assert Conditioner(0, 3, 4, width=8, depth=1, rngs=nnx.Rngs(0)).of_context(context.T).shape == (5, 4)


def test_soft_clip_is_the_identity_that_ends():
    x = jnp.array([-1e6, -0.01, 0.0, 0.01, 1e6])
    np.testing.assert_allclose(soft_clip(x, 8.0), [-8, -0.01, 0, 0.01, 8], rtol=1e-5)
