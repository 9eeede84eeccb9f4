"""Nothing is compiled twice: a second training of a model of the same shape, another observation, another number of draws in its bucket."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.encoders import IdentityEncoderConfig
from vardax_flax.heads import FlowHeadConfig, RegressionHeadConfig, ScoreHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import LinearGaussian
from vardax_flax.streams import ArrayStream
from vardax_flax.training import FitConfig, fit

SIMULATOR = LinearGaussian.random(2, 2, seed=0, noise_std=0.5)
HEADS = [
    pytest.param(FlowHeadConfig(layers=2, width=8, bins=3), marks=pytest.mark.slow),
    pytest.param(ScoreHeadConfig(width=8, depth=1, steps=3), marks=pytest.mark.slow),
    RegressionHeadConfig(width=8),
]


def data(seed: int) -> Batch:
    keys = jax.random.split(jax.random.key(seed), 200)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(SIMULATOR.sample))(keys))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_nothing_is_compiled_twice(head, compiled):
    config = AmortizedConfig(encoder=IdentityEncoderConfig(), head=head)
    settings = FitConfig(steps=4, eval_every=2, held_out=16)

    def train(seed: int) -> object:
        posterior = config.build(SIMULATOR, nnx.Rngs(seed))
        simulations = ArrayStream(data(seed), 20, seed=seed)
        before = len(compiled)
        fit(posterior, simulations, settings, progress=False)
        return posterior, len(compiled) - before

    posterior, first = train(0)
    _, second = train(1)
    assert first > 0
    assert second == 0

    def answer(rows: slice, n: int, key: int) -> int:
        drawn = data(2)
        target, seen = jnp.asarray(drawn.target[rows]), Batch(jnp.asarray(drawn.input[rows]), jnp.asarray(drawn.mask[rows]))
        key = jax.random.key(key)
        before = len(compiled)
        draws = posterior.sample(seen, key, n)
        assert draws.shape == (rows.stop - rows.start, n, 2)
        posterior(seen, key)
        if head.kind != "score":  # whose density is an ODE: dear to compile, and reached by the same way
            posterior.log_prob(target, seen)
        return len(compiled) - before

    assert answer(slice(0, 3), 100, 0) > 0
    assert answer(slice(10, 13), 97, 1) == 0
    assert answer(slice(20, 24), 103, 2) == 0
