"""Products in bfloat16: they are in the program, and nothing else is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.perturb import perturb
from vardax_flax.core.batch import Batch
from vardax_flax.encoders import Conv1DEncoderConfig, IdentityEncoderConfig
from vardax_flax.heads import FlowHeadConfig, RegressionHeadConfig, ScoreHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import LinearGaussian, Lorenz96, TwoMoons
from vardax_flax.training import fit
from vardax_flax.training.half import structure_in_bfloat16
from vardax_flax.training.parallel import make_mesh, make_train_chunk, replicate, shard
from vardax_flax.training.state import init_state

NARROW = {"layers": 2, "width": 8}
MODELS = {
    "gaussian": (LinearGaussian.random(2, 2), AmortizedConfig(IdentityEncoderConfig(), RegressionHeadConfig(width=8))),
    "conv": (
        Lorenz96(steps=4),
        AmortizedConfig(Conv1DEncoderConfig(features=4, channels=2, depth=1), RegressionHeadConfig("diagonal", width=8)),
    ),
    "spline": (TwoMoons(), AmortizedConfig(IdentityEncoderConfig(), FlowHeadConfig(**NARROW, mixing="lu"))),
    "nsf": (TwoMoons(), AmortizedConfig(IdentityEncoderConfig(), FlowHeadConfig(family="nsf", **NARROW))),
    "score": (TwoMoons(), AmortizedConfig(IdentityEncoderConfig(), ScoreHeadConfig(width=8, depth=1))),
}


ARITHMETIC = set("add subtract multiply divide negate abs maximum minimum reduce exponential log tanh logistic sqrt rsqrt power".split())


def operations(text):
    """Name of an operation and the types it returns."""
    found = re.findall(r"stablehlo\.(\w+)\"?[ (].*(?:->|:) *\(?([^()]*?)\)?$", text, re.MULTILINE)
    return [(name, kind) for name, kind in found]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "gaussian" else pytest.mark.slow) for n in MODELS])
def test_the_products_of_networks_are_in_bfloat16_and_nothing_else_is(name):
    simulator, config = MODELS[name]
    model = config.build(simulator, nnx.Rngs(0))
    batch = jax.eval_shape(jax.vmap(simulator.sample), jax.random.split(jax.random.key(0), 4))
    _, params, rest = nnx.split(model, nnx.Param, ...)

    def program(structure):
        loss = lambda p, batch: nnx.merge(structure, p, rest).loss(batch, jax.random.key(0))[0]  # noqa: E731
        return jax.jit(jax.value_and_grad(loss)).lower(params, batch)

    lowered = program(structure_in_bfloat16(model))
    loss, gradient = lowered.out_info
    assert loss.dtype == jnp.float32 and {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype(np.float32)}
    found = operations(lowered.as_text())
    in_half = [op for op, kind in found if "bf16" in kind]
    assert in_half.count("dot_general") >= 4
    # whatever calculates with what the products return does so in float32
    assert not ARITHMETIC & set(in_half) and {"add", "multiply"} <= {op for op, kind in found if "f32" in kind}
    assert "bf16" not in program(nnx.split(model)[0]).as_text()


def test_the_state_stays_in_float32_and_the_estimator_as_it_was(parts):
    posterior, stream = parts.posterior(), parts.stream()
    optimizer = optax.adam(1e-3)
    graphdef, state = init_state(posterior, optimizer)
    kinds = jax.tree.map(lambda leaf: leaf.dtype, state)
    mesh = make_mesh(jax.devices()[:1])
    chunk = make_train_chunk(structure_in_bfloat16(posterior), optimizer, stream.materialize, mesh, seed=0, ema_decay=0.9)
    payload = shard(np.stack([stream.payload(step, slice(0, 64)) for step in range(2)]), mesh)
    state, sums = chunk(replicate(state, mesh), payload, np.int32(0), np.int32(2))
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == kinds
    assert sums["loss"].dtype == jnp.float32
    assert nnx.split(posterior)[0] == graphdef  # what answers has no bfloat16 in it


@pytest.mark.slow
def test_training_comes_to_the_same_loss(parts):
    losses = {}
    for kind in ("float32", "bfloat16"):
        posterior = perturb(parts.posterior(), 0.3)
        result = fit(posterior, parts.stream(), parts.config(compute_dtype=kind, optim={"learning_rate": 3e-2}), progress=False)
        losses[kind] = [line["held_out"] for line in result.history]
        assert np.isfinite(posterior.log_prob(jnp.zeros((1, 2)), Batch([[0.0, 0.0]], [[1, 1]]))).all()
    assert losses["bfloat16"][-1] < losses["bfloat16"][0] - 0.1
    assert losses["bfloat16"] != losses["float32"]  # it was not float32 under another name
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], atol=0.03)
