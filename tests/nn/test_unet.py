"""What a U-Net promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.perturb import noise, perturb
from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.nn import FieldNet, UNet, UNetConfig
from vardax_flax.nn.unet import _cells_to_channels, _channels_to_cells

LINE = UNetConfig(grid=(8,), channels=(3, 4), depth=(1, 1))
PLANE = UNetConfig(grid=(8, 4), channels=(3, 4, 5), depth=(0, 1, 1))
WALLS = dataclasses.replace(PLANE, periodic=False)
configs = mostly_slow("config", [LINE, PLANE, WALLS], ids=["line", "plane", "walls"])


@pytest.mark.parametrize("grid", [(8,), (4, 6)])
def test_cells_and_channels_are_the_same_numbers(grid):
    h = noise(2, *grid, 3)
    coarse = _cells_to_channels(h, len(grid))
    assert coarse.shape == (2, *(size // 2 for size in grid), 3 * 2 ** len(grid))
    np.testing.assert_array_equal(_channels_to_cells(coarse, len(grid)), h)
    corner = tuple([0] + [slice(0, 2)] * len(grid))
    np.testing.assert_array_equal(np.sort(coarse[(0, *(0,) * len(grid))].ravel()), np.sort(h[corner].ravel()))


def build(config, perturbed=True):
    net = UNet(config, in_features=2, out_features=2, context_channels=3, vector_features=4, timed=True, rngs=nnx.Rngs(0))
    return perturb(net, 0.2) if perturbed else net


def inputs(config, *lead):
    return noise(*lead, *config.grid, 2), noise(*lead, seed=1), noise(*lead, *config.grid, 3, seed=2), noise(*lead, 4, seed=3)


@configs
def test_it_starts_at_zero_and_sees_everything(config, x64):
    x, t, field, vector = inputs(config, 2)
    np.testing.assert_array_equal(jax.jit(build(config, perturbed=False))(x, t, field, vector), 0)
    net = jax.jit(build(config))
    out = net(x, t, field, vector)
    assert out.shape == x.shape
    for changed in ((x + 1, t, field, vector), (x, t + 1, field, vector), (x, t, field + 1, vector), (x, t, field, vector + 1)):
        assert (abs(net(*changed) - out).max(axis=tuple(range(1, out.ndim))) > 1e-4).all()


@configs
def test_leading_axes_broadcast(config, x64):
    net = jax.jit(build(config))
    x, t, field, vector = inputs(config, 2, 3)
    whole = np.asarray(net(x, t, field, vector))
    shared = net(x, t[:1, :1], field[:, :1], vector[:1])
    repeated = (x, *(jnp.broadcast_to(a, (2, 3, *b.shape[2:])) for a, b in ((t[:1, :1], t), (field[:, :1], field), (vector[:1], vector))))
    np.testing.assert_allclose(shared, net(*repeated), atol=1e-12)
    np.testing.assert_allclose(net(x[1, 2], t[1, 2], field[1, 2], vector[1, 2]), whole[1, 2], atol=1e-12)


def test_a_periodic_net_commutes_with_shifts_of_whole_cells(x64):
    for config in (LINE, PLANE):
        axes, by = tuple(range(-len(config.grid) - 1, -1)), (2 ** (len(config.channels) - 1),) * len(config.grid)
        net = jax.jit(build(config))
        x, t, field, vector = inputs(config)
        moved = net(jnp.roll(x, by, axes), t, jnp.roll(field, by, axes), vector)
        np.testing.assert_allclose(moved, jnp.roll(net(x, t, field, vector), by, axes), atol=1e-12)


@mostly_slow(("features", "parts"), [(2 * 32 + 5, (2, 5)), (32, (1, 0)), (7, (0, 7))])
def test_a_flat_context_is_fields_and_a_vector(features, parts, x64):
    """The flat interface is the U-Net on reshaped arrays; a second output follows the first."""
    net = perturb(FieldNet(PLANE, 64, features, outputs=2, timed=True, rngs=nnx.Rngs(0)), 0.2)
    x, context, t = noise(3, 64), noise(3, features, seed=1), noise(3, seed=2)
    channels, vector = parts
    cut = 32 * channels
    field = context[:, :cut].reshape(3, 8, 4, channels)
    out = jax.jit(net.net)(x.reshape(3, 8, 4, 2), t, field, context[:, cut:])
    flat = jax.jit(net)
    got = np.asarray(flat(x, context, t))
    assert got.shape == (3, 128)
    np.testing.assert_allclose(got[:, :64], out[..., :2].reshape(3, -1), atol=1e-12)
    np.testing.assert_allclose(got[:, 64:], out[..., 2:].reshape(3, -1), atol=1e-12)
    assert (abs(flat(x, context.at[:, -1].add(1), t) - got).max(axis=-1) > 1e-4).all()


def test_a_state_off_the_grid_is_refused():
    with pytest.raises(ConfigError, match=r"expected a state on a grid of \(8, 4\), got one of 33 numbers; do "):
        FieldNet(PLANE, 33, 5, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "field",
    [{"grid": (6, 8)}, {"grid": (8,) * 3}, {"grid": ()}, {"grid": (0, 8)}, {"channels": ()}, {"channels": (4, 0, 4, 4)}, {"depth": (1,)},
     {"depth": (0, 1, 1, -1)}, {"kernel_size": 2}, {"kernel_size": 0}],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(field):
    with pytest.raises(ConfigError, match="expected .*, got .*; do "):
        UNetConfig(**{"grid": (8, 8), **field})


def test_the_configuration_survives_json():
    assert from_dict(UNetConfig, to_dict(PLANE)) == PLANE
