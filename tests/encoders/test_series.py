"""The encoder of series, and the field that convolutions leave: what depends on the order of time, what moves with the observation."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.perturb import noise, perturb
from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch
from vardax_flax.encoders import Conv1DEncoderConfig, Conv2DEncoderConfig, TimeSeriesEncoderConfig
from vardax_flax.nn import BidirectionalGRU


def build(config, *obs):
    field = jax.ShapeDtypeStruct(obs, jnp.float32)
    encoder = perturb(config.build(Batch(field, field), nnx.Rngs(0)))
    return jax.jit(lambda batch: encoder(batch)), encoder.features


def observed(*shape, seed=0):
    return Batch(noise(*shape, seed=seed), jnp.ones(shape))


@mostly_slow("cell", ["gru", "attention"])
@mostly_slow("obs", [(9, 3), (9,), (9, 2, 3)], ids=str)
def test_a_series_of_any_rank_has_one_context_that_knows_the_order(cell, obs):
    encode, _ = build(TimeSeriesEncoderConfig(cell=cell, features=5, width=8), *obs)
    batch = observed(4, *obs)
    context = np.asarray(encode(batch))
    assert context.shape == (4, 5)
    for t in (0, 4, 8):  # the last is not all it remembers
        assert (abs(encode(batch._replace(input=batch.input.at[:, t].add(1))) - context).max(axis=-1) > 1e-3).all()
    assert (abs(encode(batch._replace(input=batch.input[:, ::-1])) - context).max(axis=-1) > 1e-3).all()


def test_a_gru_is_its_recursion_in_both_directions(x64):
    """Against a loop in NumPy (Cho et al. 2014, equations 5 to 8, with the reset gate after the product)."""
    net, x = perturb(BidirectionalGRU(3, 4, rngs=nnx.Rngs(0))), np.asarray(noise(5, 3))
    cells = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(net.cells)))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731

    def run(i, series):
        w, u = cells["from_input"], cells["from_state"]
        h, total = np.zeros(4), np.zeros(4)
        for row in series:
            a = np.split(row @ w["kernel"][i] + w["bias"][i], 3)
            b = np.split(h @ u["kernel"][i] + u["bias"][i], 3)
            z = sigmoid(a[0] + b[0])
            h = (1 - z) * np.tanh(a[2] + sigmoid(a[1] + b[1]) * b[2]) + z * h
            total = total + h
        return h, total / len(series)

    (forward, mean), (backward, mean_back) = run(0, x), run(1, x[::-1])
    np.testing.assert_allclose(net(jnp.asarray(x)), np.concatenate([forward, backward, mean, mean_back]), atol=1e-12)


@mostly_slow(
    ("config", "obs", "grid"),
    [
        (Conv1DEncoderConfig(channels=4, depth=1, output="field"), (2, 9), (9,)),
        (Conv1DEncoderConfig(channels=4, depth=1, output="field", grid="time"), (9, 2), (9,)),
        (Conv2DEncoderConfig(channels=4, depth=1, output="field", periodic=True), (2, 6, 5), (6, 5)),
    ],
    ids=["site", "time", "image"],
)
def test_a_field_moves_with_the_observation(config, obs, grid):
    """In the order (*grid, channels), on a periodic domain."""
    encode, features = build(config, *obs)
    assert features == np.prod(grid) * 4
    batch = observed(3, *obs)
    field = np.asarray(encode(batch)).reshape(3, *grid, 4)
    axes = (1,) if grid == obs[:1] else tuple(range(-len(grid), 0))
    moved = batch._replace(input=jnp.roll(batch.input, range(2, 2 + len(grid)), axes))
    expected = np.roll(field, range(2, 2 + len(grid)), tuple(range(1, 1 + len(grid))))
    np.testing.assert_allclose(np.asarray(encode(moved)).reshape(field.shape), expected, atol=1e-5)
    assert abs(expected - field).max() > 1e-2


def test_beyond_the_edge_lie_zeros_where_the_domain_is_not_periodic():
    """A change at one edge does not reach the other."""
    for periodic in (True, False):
        config = Conv2DEncoderConfig(channels=4, depth=0, output="field", periodic=periodic)
        encode, _ = build(config, 6, 5)
        batch = observed(1, 6, 5)
        change = encode(batch._replace(input=batch.input.at[:, 0].add(1))) - encode(batch)
        assert (abs(np.asarray(change).reshape(6, 5, 4)[-1]).max() > 1e-3) == periodic
