"""The loss on derivatives: its value by hand, its exact derivatives, and what training with it gains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import LeastSquares
from vardax_flax.encoders import MLPEncoderConfig
from vardax_flax.heads import FlowHeadConfig, RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.posteriors.sobolev import SobolevTerm, exact_estimate
from vardax_flax.simulators import LinearGaussian, TwoMoons
from vardax_flax.streams import SeedStream
from vardax_flax.training import FitConfig, OptimConfig, fit

SIMULATOR = LinearGaussian.random(2, 3, noise_std=0.5, missing_rate=0.2)
CONFIG = AmortizedConfig(MLPEncoderConfig(features=8, width=16, depth=1), RegressionHeadConfig(width=16))


@dataclasses.dataclass(frozen=True)
class Cubic(LeastSquares):
    """x ~ N(0, I₂), y = x + x³/3 + 0.3 ε."""

    kind = "cubic"

    def sample(self, key):
        x, noise = jax.random.normal(key, (2, 2))
        return Batch(self.predict(x) + 0.3 * noise, jnp.ones(2), x)

    def predict(self, x):
        return x + x**3 / 3

    def residual(self, x, element):
        return jnp.concatenate([x, jnp.where(element.mask == 1, self.predict(x) - element.input, 0) / 0.3])

    def log_prior(self, x, element):
        return -0.5 * jnp.square(x).sum()

    def log_likelihood(self, x, element):
        return -0.5 * jnp.square(self.residual(x, element)[2:]).sum()


def test_the_mode_of_a_least_squares_problem_and_its_derivative(x64):
    """x* solves x + (1 + x²)(x + x³/3 − y) / 0.09 = 0, so dx*/dy = (1 + x²) / (0.09 + (1 + x²)² + 2 x (x + x³/3 − y))."""
    simulator = Cubic()
    element = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), simulator.sample(jax.random.key(0)))
    estimate = exact_estimate(simulator)
    along = jax.jit(lambda y, v: jax.jvp(lambda y: estimate(element._replace(input=y)), (y,), (v,)))
    x, moved = along(element.input, jnp.array([1.0, 0.0]))
    misfit = x + x**3 / 3 - element.input
    np.testing.assert_allclose(0.09 * x + (1 + x**2) * misfit, 0, atol=1e-8)
    expected = (1 + x**2) / (0.09 + (1 + x**2) ** 2 + 2 * x * misfit)
    np.testing.assert_allclose(moved, [expected[0], 0], rtol=1e-6, atol=1e-12)


def gain(batch):
    """∂E[x | y]/∂y of each element `(n, state, obs)`."""
    return jax.vmap(jax.jacobian(lambda y, element: SIMULATOR.posterior(element._replace(input=y))[0]))(batch.input, batch)


@pytest.mark.slow
def test_the_term_is_the_mean_squared_error_of_the_jacobian(x64):
    batch = jax.vmap(SIMULATOR.sample)(jax.random.split(jax.random.key(0), 20_000))
    term = SobolevTerm(exact_estimate(SIMULATOR), 0.5, SIMULATOR.spec)
    term.calibrate(batch)
    wrong = jnp.array([[0.3, 0.0, -0.2], [0.1, 0.4, 0.0]])
    error = np.asarray((wrong - gain(batch)) * batch.mask[:, None])  # a missing value moves nothing
    error = error * np.asarray(term.observed.std[...]) / np.asarray(term.state.std[...])[:, None]
    expected = 0.5 * np.square(error).sum((1, 2)).mean()
    found = term(lambda b: jnp.einsum("ij,nj->ni", wrong, b.input), batch, SIMULATOR.spec, jax.random.key(1))
    np.testing.assert_allclose(found, expected, rtol=0.05)
    exact = term(jax.vmap(lambda element: SIMULATOR.posterior(element)[0]), batch, SIMULATOR.spec, jax.random.key(1))
    np.testing.assert_allclose(exact, 0, atol=1e-20)


@pytest.mark.slow
def test_training_with_it_comes_closer_to_the_kalman_gain():
    errors, losses = {}, {}
    batch = SeedStream(SIMULATOR, 64).held_out(64)
    exact = np.asarray(gain(batch)) * np.asarray(batch.mask)[:, None]
    for weight in (0.0, 0.3):
        made = dataclasses.replace(CONFIG, sobolev_weight=weight).build(SIMULATOR, nnx.Rngs(0))
        optim = OptimConfig(learning_rate=3e-3, warmup_steps=10)
        fit(made, SeedStream(SIMULATOR, 64), FitConfig(steps=150, eval_every=150, held_out=64, optim=optim), progress=False)
        jacobian = jax.jit(jax.vmap(jax.jacobian(lambda y, one, model=made: model(one._replace(input=y)))))(batch.input, batch)
        errors[weight] = float(np.square(np.asarray(jacobian) - exact).sum() / np.square(exact).sum())
        losses[weight] = -float(made.log_prob(batch.target, batch).mean())
    assert errors[0.3] < 0.7 * errors[0.0]
    assert losses[0.3] < losses[0.0] + 0.05  # and the density does not pay for it


@pytest.mark.slow
def test_the_term_is_told_beside_the_loss():
    plain, made = (dataclasses.replace(CONFIG, sobolev_weight=w).build(SIMULATOR, nnx.Rngs(0)) for w in (0.0, 2.0))
    batch = jax.vmap(SIMULATOR.sample)(jax.random.split(jax.random.key(0), 16))
    loss, told = made.loss(batch, jax.random.key(1))
    alone, nothing = plain.loss(batch, jax.random.key(1))
    assert nothing == {} and told["sobolev"] > 0
    np.testing.assert_allclose(loss, alone + told["sobolev"], rtol=1e-5)


def test_what_has_no_derivative_is_refused():
    with pytest.raises(ConfigError, match="expected a regression head, .*, got 'flow'; do "):
        AmortizedConfig(head=FlowHeadConfig(), sobolev_weight=1.0)
    with pytest.raises(ConfigError, match="expected a `Conjugate` or `LeastSquares` simulator .*, got TwoMoons; do "):
        dataclasses.replace(CONFIG, sobolev_weight=1.0).build(TwoMoons(), nnx.Rngs(0))
    with pytest.raises(ConfigError, match='expected space="physical" for sobolev_weight, got unconstrained; do '):
        dataclasses.replace(CONFIG, space="unconstrained", sobolev_weight=1.0)
    with pytest.raises(ConfigError, match="expected sobolev_weight >= 0, got -1.0; do "):
        dataclasses.replace(CONFIG, sobolev_weight=-1.0)
