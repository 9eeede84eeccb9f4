"""The score head on fields: the whole posterior with a U-Net, from a simulator to draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vardax_flax as vf
from tests.perturb import noise, perturb
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.encoders import ControlEncoderConfig
from vardax_flax.heads import ScoreHeadConfig
from vardax_flax.nn import UNetConfig
from vardax_flax.simulators import Tracks2D

NET = UNetConfig(grid=(4, 4), channels=(4, 6), depth=(1, 1))


@pytest.mark.slow
def test_an_untrained_field_is_drawn_from_its_gaussian():
    head = ScoreHeadConfig(net=NET, steps=5).build(16, 2 * 16 + 3, nnx.Rngs(0))
    head.affine = perturb(head.affine, 0.2)
    context = noise(2, 35)
    x = jax.jit(head.sample, static_argnums=2)(context, jax.random.key(0), 3000)
    z = np.asarray(head.affine.forward(x, context[:, None])[0])
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=0.1)
    for one in z:
        np.testing.assert_allclose(np.cov(one.T), np.eye(16), atol=0.12)


def test_the_mode_of_a_large_field_is_its_mean():
    net = UNetConfig(grid=(10, 10), channels=(4,), depth=(1,))
    head = ScoreHeadConfig(net=net).build(100, 100, nnx.Rngs(0))
    head.affine = perturb(head.affine, 0.2)
    context = noise(3, 100)
    np.testing.assert_allclose(jax.jit(head.mode)(context, jax.random.key(0)), head.affine.parameters(context)[0], atol=1e-5)


def test_a_field_is_seen_at_several_levels_of_noise():
    head = ScoreHeadConfig(net=NET, noises=3).build(16, 2 * 16 + 3, nnx.Rngs(0))
    loss = jax.jit(head.loss)(noise(2, 16), noise(2, 35), jax.random.key(0))
    assert loss.shape == (2,) and np.isfinite(loss).all()


def test_old_configurations_keep_their_meaning():
    stored = to_dict(ScoreHeadConfig(width=16))
    del stored["net"]
    assert from_dict(ScoreHeadConfig, stored) == ScoreHeadConfig(width=16)
    assert from_dict(ScoreHeadConfig, to_dict(ScoreHeadConfig(net=NET))).net == NET


def test_a_grid_that_is_not_the_states_is_refused():
    with pytest.raises(ConfigError, match=r"expected a state on a grid of \(4, 4\), got one of 9 numbers; do "):
        ScoreHeadConfig(net=NET).build(9, 5, nnx.Rngs(0))


@pytest.mark.slow
def test_a_small_field_is_learned():
    """After a short training the mean is better than the analysis it started from, and draws spread as they miss."""
    simulator = Tracks2D(size=16, days=3, length=2.0, satellites=2)
    net = UNetConfig(grid=(16, 16), channels=(16, 32), depth=(1, 1))
    config = vf.AmortizedConfig(ControlEncoderConfig(steps=4), ScoreHeadConfig(net=net, steps=12))
    posterior = config.build(simulator, nnx.Rngs(0))
    optim = vf.OptimConfig(learning_rate=3e-3, warmup_steps=20, ema_decay=0.98)
    vf.fit(posterior, vf.SeedStream(simulator, 32), vf.FitConfig(steps=300, eval_every=100, held_out=64, optim=optim), progress=False)
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(9), 32))
    analysis = posterior.encoder.locate(batch).frame
    draws = posterior.sample(batch, jax.random.key(1), 16)
    error = lambda x: float(jnp.sqrt(jnp.square(x - batch.target).mean()))  # noqa: E731
    assert error(draws.mean(axis=1)) < 0.95 * error(analysis)
    spread = float(jnp.sqrt(draws.var(axis=1, ddof=1).mean() * 17 / 16))
    assert abs(spread / error(draws.mean(axis=1)) - 1) < 0.1
