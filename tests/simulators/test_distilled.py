"""Distillation: the exact posterior in place of the state changes no law, and few observations with draws are enough to fit these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.perturb import perturb
from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.encoders import IdentityEncoderConfig, MLPEncoderConfig
from vardax_flax.heads import RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import Distilled, GaussianLinearUniform, LinearGaussian, Lorenz63
from vardax_flax.streams import DrawsStream, SeedStream
from vardax_flax.training import FitConfig, OptimConfig, fit

LINEAR = LinearGaussian.random(2, 2, noise_std=0.5, missing_rate=0.2)


@mostly_slow("simulator", [LINEAR, GaussianLinearUniform()], ids=lambda s: s.kind)
def test_the_joint_law_is_unchanged(simulator):
    """Means of x, x² and x y agree within five standard errors, though states and draws differ."""
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    first = jax.jit(jax.vmap(simulator.sample))(jax.vmap(lambda k: jax.random.split(k)[0])(keys))
    second = jax.jit(jax.vmap(Distilled(simulator).sample))(keys)
    np.testing.assert_array_equal(first.input, second.input)
    assert (np.asarray(first.target) != np.asarray(second.target)).mean() > 0.99

    def statistics(batch):
        x, y = np.asarray(batch.target), np.asarray(batch.input * batch.mask)
        return np.concatenate([x, x**2, x * y[:, : x.shape[1]], x[:, :1] * x[:, 1:]], axis=1)

    gap = statistics(first) - statistics(second)
    assert (abs(gap.mean(0)) < 5 * gap.std(0) / np.sqrt(n)).all()


@pytest.mark.slow
def test_the_mean_loss_of_a_model_is_unchanged():
    """On the same observations, so that what differs is the state alone."""
    config = AmortizedConfig(IdentityEncoderConfig(), RegressionHeadConfig(width=8), allow_unobserved=True)
    made = perturb(config.build(LINEAR, nnx.Rngs(0)), 0.3)
    made.calibrate(SeedStream(Distilled(LINEAR), 64).held_out(64))
    keys = jax.random.split(jax.random.key(0), 10_000)
    first = jax.jit(jax.vmap(LINEAR.sample))(jax.vmap(lambda k: jax.random.split(k)[0])(keys))
    second = jax.jit(jax.vmap(Distilled(LINEAR).sample))(keys)
    gap = np.asarray(made.log_prob(first.target, first)) - np.asarray(made.log_prob(second.target, second))
    assert abs(gap.mean()) < 5 * gap.std() / 100


@pytest.mark.slow
def test_a_model_distilled_on_few_observations_fits_these():
    """8 observations with 512 exact draws each: the learned Gaussians have their means and spreads."""
    elements = jax.vmap(LINEAR.sample)(jax.random.split(jax.random.key(2), 8))
    mean, cov = jax.vmap(LINEAR.posterior)(elements)
    noise = jax.random.normal(jax.random.key(3), (8, 512, 2))
    draws = mean[:, None] + jnp.einsum("nij,nkj->nki", jnp.linalg.cholesky(cov), noise)
    both = jax.tree.map(lambda a: np.concatenate([a, a]), Batch(elements.input, elements.mask, draws))  # half is held out, somewhere
    stream = DrawsStream(both, batch_size=64, seed=0, validation_fraction=0.1)
    made = AmortizedConfig(MLPEncoderConfig(features=8, width=32, depth=1), RegressionHeadConfig(width=32)).build(LINEAR, nnx.Rngs(0))
    optim = OptimConfig(learning_rate=5e-3, warmup_steps=10)
    fit(made, stream, FitConfig(steps=200, eval_every=100, held_out=512, optim=optim), progress=False)
    found = np.asarray(made.sample(elements._replace(target=None), jax.random.key(4), 2000))
    sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    np.testing.assert_array_less(abs(found.mean(1) - mean), 0.3 * sd)
    np.testing.assert_allclose(found.std(1) / sd, 1, atol=0.25)


def test_a_simulator_without_an_oracle_is_refused():
    with pytest.raises(ConfigError, match="expected a `Conjugate` simulator, or one with `ExactDraws`, got Lorenz63; do "):
        Distilled(Lorenz63())
