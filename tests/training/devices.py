"""Run by test_devices.py in a process of its own with four virtual devices and double precision; fails by raising."""

import sys
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from vardax_flax.core.config import ConfigError
from vardax_flax.encoders import IdentityEncoderConfig
from vardax_flax.heads import RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import LinearGaussian
from vardax_flax.streams import SeedStream
from vardax_flax.training import FitConfig, OptimConfig, fit
from vardax_flax.training.examples import calibrate
from vardax_flax.training.parallel import make_evaluation, make_mesh, make_train_chunk, replicate, shard
from vardax_flax.training.state import init_state

SIMULATOR = LinearGaussian.random(2, 2, seed=0, noise_std=0.5)
STREAM = SeedStream(SIMULATOR, 64)
SGD = optax.sgd(1.0)  # one step of rate 1 shows the gradient itself, at its true size
CLOSE = {"rtol": 1e-6, "atol": 1e-12}


def build():
    config = AmortizedConfig(encoder=IdentityEncoderConfig(), head=RegressionHeadConfig(covariance="full", width=8))
    model = config.build(SIMULATOR, nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(np.float64), nnx.state(model, nnx.Param)))  # weights are float32 by default
    return model


def assert_close(left, right):
    for (path, a), (_, b) in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree_util.tree_leaves_with_path(right), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **CLOSE, err_msg=jax.tree_util.keystr(path))


def one_step(n):
    """Loss, gradient and held-out loss of one step on n devices."""
    mesh = make_mesh(jax.devices()[:n])
    model = build()
    calibrate(model, STREAM)
    graphdef, state = init_state(model, SGD)
    before = jax.device_get(state.params)
    rows = slice(0, STREAM.batch_size)
    payload = shard(STREAM.payload(3, rows)[None], mesh)
    chunk = make_train_chunk(graphdef, SGD, STREAM.materialize, mesh, seed=0, ema_decay=0.0)
    state, sums = jax.block_until_ready(chunk(replicate(state._replace(step=state.step + 3), mesh), payload, np.int32(3), np.int32(1)))
    gradient = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before, jax.device_get(state.params))
    held_out = shard(jax.tree.map(lambda leaf: np.asarray(leaf)[None], STREAM.held_out(64)), mesh)
    _, loss = jax.block_until_ready(make_evaluation(graphdef, mesh, seed=0)(state, held_out))
    return {"loss": float(sums["loss"]), "norm": float(sums["grad_norm"]), "gradient": gradient, "held_out": float(loss)}


def direct():
    """The same from the definition: the gradient of the loss of the whole batch."""
    model = build()
    calibrate(model, STREAM)
    batch = jax.jit(STREAM.materialize)(STREAM.payload(3, slice(0, STREAM.batch_size)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: nnx.merge(graphdef, p, rest).loss(batch, jax.random.key(0))[0]))(params)
    return {"loss": float(loss), "norm": float(optax.tree.norm(gradient)), "gradient": nnx.to_pure_dict(gradient)}


def steps(n):
    """One step on n devices is that on one, which is what the definition says."""
    alone, expected = one_step(1), direct()
    assert alone["norm"] > 0.1
    assert_close({name: alone[name] for name in expected}, expected)
    assert_close(one_step(n), alone)


def runs(directory):
    """A run that changes from one to four devices or back is the run on one."""

    def train(steps, n, run_dir):
        optim = OptimConfig(1e-2, schedule_steps=40)
        config = FitConfig(steps=steps, eval_every=10, checkpoint_every=10, held_out=64, steps_per_dispatch=5, optim=optim)
        model = build()
        result = fit(model, STREAM, config, run_dir=run_dir, resume=True, devices=jax.devices()[:n], progress=False)
        assert result.step == steps
        return nnx.to_pure_dict(nnx.state(model)), [line["held_out"] for line in result.history]

    whole = train(40, 1, directory / "1")
    for first, second in ((4, 1), (1, 4)):
        run_dir = directory / f"{first}-{second}"
        train(20, first, run_dir)
        assert_close(train(40, second, run_dir), whole)
    try:
        fit(build(), SeedStream(SIMULATOR, 63), FitConfig(steps=1), progress=False)
    except ConfigError as error:
        assert "a batch size divisible by 4 devices, got 63" in str(error)
    else:
        raise AssertionError("a batch of 63 was split over 4 devices")


if __name__ == "__main__":
    assert jax.device_count() == 4 and jax.config.jax_enable_x64
    runs(Path(sys.argv[2])) if sys.argv[1] == "runs" else steps(int(sys.argv[1]))
    print("devices agree")
