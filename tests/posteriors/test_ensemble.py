"""An ensemble: the mixture of its members as a density and as draws, and members that learn what each would have learned alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from tests.perturb import perturb
from tests.slow import mostly_slow
from train.__main__ import main
from train.config import load_run
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import Posterior
from vardax_flax.encoders import IdentityEncoderConfig, MLPEncoderConfig
from vardax_flax.heads import FlowHeadConfig, PointHeadConfig, QuantileHeadConfig, RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig, EnsemblePosterior
from vardax_flax.simulators import LinearGaussian
from vardax_flax.streams import SeedStream
from vardax_flax.training import FitConfig, OptimConfig, fit

KEY = jax.random.key(5)
SIMULATOR = LinearGaussian.random(1, 2, noise_std=0.5)
CONFIG = AmortizedConfig(MLPEncoderConfig(features=4, width=8, depth=1), RegressionHeadConfig(width=8), members=3)
OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=5, schedule_steps=20, clip_norm=None)


def fitting(steps=20):
    return FitConfig(steps=steps, eval_every=10, held_out=64, checkpoint_every=10, steps_per_dispatch=5, optim=OPTIM)


@functools.cache
def ensemble():
    made = perturb(CONFIG.build(SIMULATOR, nnx.Rngs(0)), 0.3)
    made.calibrate(simulate(256))
    return made


@functools.cache
def simulate(n):
    return jax.jit(jax.vmap(SIMULATOR.sample))(jax.random.split(jax.random.key(1), n))


def observed(n):
    return jax.tree.map(lambda leaf: leaf[:n], simulate(256))._replace(target=None)


def test_the_density_is_the_mean_of_the_members_and_integrates_to_one():
    made, batch = ensemble(), observed(2)
    assert isinstance(made, EnsemblePosterior) and isinstance(made, Posterior)
    grid = jnp.linspace(-30.0, 30.0, 20_001)[None, :, None] * jnp.ones((2, 1, 1))
    log_q = np.asarray(made.log_prob(grid, batch), np.float64)
    each = [np.exp(np.asarray(made.member(i).log_prob(grid, batch), np.float64)) for i in range(3)]
    np.testing.assert_allclose(np.exp(log_q), np.mean(each, axis=0), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(np.trapezoid(np.exp(log_q), np.asarray(grid)[..., 0]), 1, atol=1e-3)
    assert abs(each[0] - each[1]).max() > 0.1 * each[0].max() and abs(each[0] - each[2]).max() > 0.1 * each[0].max()


def apart(members=3):
    """Members 1000 apart and narrow, so that a draw says whose it is."""
    made = AmortizedConfig(IdentityEncoderConfig(), RegressionHeadConfig(width=8), members=members).build(SIMULATOR, nnx.Rngs(0))
    bias = made.stack.head.gaussian.net.last.bias
    bias[...] = bias[...].at[:, 0].set(1000.0 * jnp.arange(members))
    return made


def test_draws_are_independent_and_each_is_of_a_random_member():
    made, batch = apart(), observed(5)
    draws = np.asarray(made.sample(batch, KEY, 60))
    owner = np.rint(draws[..., 0] / 1000).astype(int)
    counts = np.stack([(owner == m).sum(axis=1) for m in range(3)], axis=1)
    assert stats.chisquare(counts.sum(axis=0)).pvalue > 1e-3
    assert len({tuple(row) for row in counts}) > 1  # not in equal shares: truth and draws would not be exchangeable
    np.testing.assert_array_equal(made.sample(observed(5), KEY, 50), draws[:, :50])
    np.testing.assert_array_equal(made.sample(observed(3), KEY, 60), draws[:3])
    np.testing.assert_array_equal(jax.jit(lambda b: made.sample(b, KEY, 60))(batch), draws)
    spread = draws[..., 0] - 1000 * owner
    assert 0.8 < spread.std() < 1.2 and len(np.unique(spread.round(5))) > 280  # members do not share their noise
    one = made.sample(Batch(*(None if f is None else f[0] for f in batch)), KEY, 7)
    np.testing.assert_allclose(one, draws[0, :7], rtol=1e-6)


def test_the_mode_is_the_best_of_the_members_modes():
    made, batch = apart(2), observed(4)
    scale = made.stack.head.gaussian.net.last.bias
    scale[...] = scale[...].at[1, 1].set(-2.0)  # the second member is the narrower, so its mode is the higher
    np.testing.assert_allclose(made(batch), 1000, atol=1)
    scale[...] = scale[...].at[1, 1].set(2.0)
    np.testing.assert_allclose(made(batch), 0, atol=1)


@mostly_slow("head", [PointHeadConfig(width=8), QuantileHeadConfig(width=8)], ids=lambda head: head.kind)
def test_without_a_density_the_answer_is_the_mean_of_the_members(head):
    made, batch = perturb(dataclasses.replace(CONFIG, head=head).build(SIMULATOR, nnx.Rngs(0)), 0.3), observed(4)
    answers = np.stack([made.member(i)(batch) for i in range(3)])
    np.testing.assert_allclose(made(batch), answers.mean(axis=0), atol=1e-6)
    assert answers.std(axis=0).min() > 1e-3
    with pytest.raises(NotImplementedError, match="expected a head with a density, got .*; do use sample or model"):
        made.log_prob(jnp.zeros((4, 1)), batch)


def test_the_gradient_of_a_member_is_its_own():
    made, batch = ensemble(), simulate(256)

    def loss_and_gradient(model):
        structure, params, rest = nnx.split(model, nnx.Param, ...)
        return jax.jit(jax.value_and_grad(lambda p: nnx.merge(structure, p, rest).loss(batch, KEY)[0]))(params)

    loss, gradient = loss_and_gradient(made)
    alone = [loss_and_gradient(made.member(i)) for i in (0, 2)]
    np.testing.assert_allclose(loss, np.mean([made.member(i).loss(batch, KEY)[0] for i in range(3)]), rtol=1e-5)
    for i, (_, own) in zip((0, 2), alone, strict=True):
        for a, b in zip(jax.tree.leaves(gradient["stack"]), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5)
    assert abs(float(alone[0][0] - alone[1][0])) > 1e-3


@pytest.mark.slow
def test_a_member_is_what_it_would_be_alone_and_a_resumed_run_is_the_whole(tmp_path):
    stream = SeedStream(SIMULATOR, 32)
    whole = CONFIG.build(SIMULATOR, nnx.Rngs(3))
    fit(whole, stream, fitting(), run_dir=tmp_path / "whole", progress=False)
    fit(CONFIG.build(SIMULATOR, nnx.Rngs(3)), stream, fitting(10), run_dir=tmp_path / "half", progress=False)
    resumed = CONFIG.build(SIMULATOR, nnx.Rngs(3))
    fit(resumed, stream, fitting(), run_dir=tmp_path / "half", resume=True, progress=False)
    for a, b in zip(*(jax.tree.leaves(nnx.state(model)) for model in (whole, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)
    rngs = nnx.Rngs(3)
    single = AmortizedConfig(CONFIG.encoder, CONFIG.head)
    alone = [single.build(SIMULATOR, rngs) for _ in range(2)][1]  # the second that is made of these rngs
    fit(alone, stream, fitting(), progress=False)
    for a, b in zip(jax.tree.leaves(nnx.state(whole.member(1))), jax.tree.leaves(nnx.state(alone)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_it_is_chosen_and_loaded_from_the_command_line(script, tmp_path):
    flags = ("--posterior.members", 2, "--fit.steps", 4, "--fit.eval-every", 2, "--fit.held-out", 64, "--batch-size", 32, "--quiet")
    done = script(main, "debug", "--run-dir", tmp_path / "run", *flags)
    assert done.code == 0, done.err
    loaded = load_run(tmp_path / "run").posterior
    assert isinstance(loaded, EnsemblePosterior) and loaded.size == 2
    draws = loaded.sample(Batch([[0.0, 1.0]], [[1, 1]]), KEY, 9)
    assert draws.shape == (1, 9, 2) and np.isfinite(draws).all()


@pytest.mark.slow
def test_calibration_is_shared_and_keeps_what_tells_members_apart():
    simulator = LinearGaussian.random(5, 5)
    made = AmortizedConfig(IdentityEncoderConfig(), FlowHeadConfig(layers=2, width=8, bins=4), members=3).build(simulator, nnx.Rngs(0))
    orders = np.asarray(made.stack.head.stack.layers.order[...])
    assert (orders[0] != orders[1]).any()
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(1), 64))
    made.calibrate(batch)
    np.testing.assert_array_equal(made.stack.head.stack.layers.order[...], orders)
    np.testing.assert_allclose(made.stack.target.mean[...], np.broadcast_to(batch.target.mean(0), (3, 5)), atol=1e-5)
    assert made.stack.calibrated[...].all()
    before = jax.tree.leaves(nnx.state(made))
    made.calibrate(jax.tree.map(lambda leaf: leaf + 1, batch))
    assert all((a == b).all() for a, b in zip(before, jax.tree.leaves(nnx.state(made)), strict=True))


def test_bad_sizes_are_refused():
    with pytest.raises(ConfigError, match="expected members > 0, got 0; do "):
        AmortizedConfig(members=0)
    with pytest.raises(ConfigError, match="expected at least 2 members, got 1; do "):
        EnsemblePosterior([AmortizedConfig(CONFIG.encoder, CONFIG.head).build(SIMULATOR, nnx.Rngs(0))])
