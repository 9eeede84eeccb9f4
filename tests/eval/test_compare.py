"""The comparison with oracles where everything is known: a linear window, whose 4D-Var posterior is the exact one."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.compare import Answer, exact_oracle, first_guess_table, importance, make_oracle, oracle_health, score_table, timed, window_oracle
from eval.fourdvar import SimulatorFourDVar
from eval.scores import score
from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import LeastSquares
from vardax_flax.ops import gaussian
from vardax_flax.simulators import LinearGaussian, Lorenz63Climatology

pytestmark = pytest.mark.slow  # small, but each test compiles its own programs

MODEL = jnp.array([[1.0, 0.3], [-0.2, 0.9]])
PRIOR_STD = jnp.array([2.0, 0.5])
NOISE_STD, TIMES, EVENTS, DRAWS = 0.7, 4, 16, 200


class LinearWindow(LeastSquares):
    """x₀ ~ N(x_b, diag b²), seen through powers of a matrix."""

    kind: ClassVar[str] = "linear_window"

    def predict(self, x):
        return jnp.stack([jnp.linalg.matrix_power(MODEL, k) @ x for k in range(1, TIMES + 1)])

    def sample(self, key):
        keys = jax.random.split(key, 3)
        background = jax.random.normal(keys[0], (2,))
        x = background + PRIOR_STD * jax.random.normal(keys[1], (2,))
        y = self.predict(x) + NOISE_STD * jax.random.normal(keys[2], (TIMES, 2))
        return Batch(input=y, mask=jnp.ones_like(y), target=x, background=background)

    def residual(self, x, element):
        prior = (x - element.background) / PRIOR_STD
        return jnp.concatenate([prior, ((self.predict(x) - element.input) * element.mask / NOISE_STD).ravel()])

    def log_prior(self, x, element):
        return -0.5 * jnp.square((x - element.background) / PRIOR_STD).sum() - jnp.log(PRIOR_STD).sum() - math.log(2 * math.pi)

    def log_likelihood(self, x, element):
        misfit = (self.predict(x) - element.input) * element.mask / NOISE_STD
        return -0.5 * jnp.square(misfit).sum() - element.mask.sum() * (math.log(NOISE_STD) + 0.5 * math.log(2 * math.pi))


@pytest.fixture(scope="module")
def window():
    """Windows, their 4D-Var oracle, and the exact moments."""
    simulator = LinearWindow()
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), EVENTS))
    operator = np.asarray(jax.jacfwd(lambda x: simulator.predict(x).ravel())(jnp.zeros(2)))
    mean, cov = jax.jit(
        lambda batch: gaussian.condition(
            batch.background, jnp.diag(PRIOR_STD**2), operator, NOISE_STD**2 * jnp.eye(2 * TIMES), batch.input.reshape(EVENTS, -1)
        )
    )(batch)
    return simulator, batch, window_oracle(simulator, batch, jax.random.key(1), starts=2), np.asarray(mean), np.asarray(cov)


def test_4dvar_of_a_linear_window_is_the_exact_posterior(window):
    _, batch, oracle, mean, cov = window
    np.testing.assert_allclose(oracle.mean, mean, atol=1e-4)
    np.testing.assert_allclose(oracle.root @ np.swapaxes(oracle.root, 1, 2), cov, atol=1e-4)
    np.testing.assert_allclose(oracle.sd, np.sqrt(np.diagonal(cov, axis1=1, axis2=2)), rtol=1e-3)
    assert oracle.found.solve.converged.all() and not oracle.found.indefinite.any()
    spread = np.asarray(oracle.run(jax.random.key(2)))
    assert spread.shape == (EVENTS, 100, 2)
    z = (spread.mean(axis=1) - mean) / oracle.sd * 10
    assert np.abs(z).max() < 5 and 0.7 < z.std() < 1.3


def test_log_noise_makes_the_evidence_exact(window):
    simulator, batch, _, _, cov = window
    posterior = SimulatorFourDVar(simulator).posterior(batch)
    x = posterior.mean
    joint = jax.vmap(lambda x, element: simulator.log_prior(x, element) + simulator.log_likelihood(x, element))(x, batch)
    density = -0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
    np.testing.assert_allclose(posterior.log_evidence, joint - density, atol=2e-3)


def test_the_exact_posterior_needs_no_weights():
    simulator = LinearGaussian.random(3, 4, seed=0, noise_std=0.5)
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), EVENTS))
    oracle = exact_oracle(simulator, batch)
    mean, root = jnp.asarray(oracle.mean, jnp.float32), jnp.asarray(oracle.root, jnp.float32)
    white = jax.random.normal(jax.random.key(3), (EVENTS, DRAWS, 3))
    draws = mean[:, None] + jnp.einsum("eij,enj->eni", root, white)
    log_q = gaussian.log_prob(draws, mean[:, None], root[:, None])
    weights, k_hat = importance(simulator, batch, draws, log_q)
    np.testing.assert_allclose(weights, 1 / DRAWS, rtol=1e-3)  # ESS = S
    # a proposal that is too narrow: weights of unbounded variance for sd × 0.6, k = 1 − 0.6² in one dimension, more in three
    narrow = mean[:, None] + 0.6 * jnp.einsum("eij,enj->eni", root, white)
    _, k_narrow = importance(simulator, batch, narrow, gaussian.log_prob(narrow, mean[:, None], 0.6 * root[:, None]))
    assert k_hat.max() < 0.5 < np.median(k_narrow)
    assert oracle_health(oracle, Answer(score(np.asarray(draws), np.asarray(batch.target)), 1.0, k_hat, k_hat)).passed is True


def test_the_exact_mean_saves_every_iteration_but_one(window):
    simulator, batch, oracle, mean, _ = window
    answer = Answer(score(np.asarray(oracle.run(jax.random.key(2))), np.asarray(batch.target))._replace(mean=mean))
    rows = {row[0]: row[1:] for row in first_guess_table(simulator, oracle, answer)["rows"]}
    from_background, from_mean, saved = rows["iterations, mean"]
    assert from_mean < from_background <= 3 and saved == from_background - from_mean
    assert rows["windows in the lowest minimum found"][:2] == [1.0, 1.0]
    assert rows["windows that converged"][:2] == [1.0, 1.0]


def test_an_oracle_that_does_not_converge_fails(window):
    _, batch, oracle, _, _ = window
    status = oracle.found.solve.status.at[: EVENTS // 2].set(1)
    stuck = oracle._replace(found=oracle.found._replace(solve=oracle.found.solve._replace(status=status)))
    theirs = Answer(score(np.asarray(oracle.run(jax.random.key(2))), np.asarray(batch.target)))
    assert oracle_health(oracle, theirs).passed is True
    result = oracle_health(stuck, theirs)
    assert result.passed is False and result.details["worst"] == "50.0%"


def test_the_table_tells_costs_and_distances(window):
    _, batch, oracle, mean, _ = window
    scored = score(np.asarray(oracle.run(jax.random.key(2))), np.asarray(batch.target))
    theirs = Answer(scored._replace(mean=oracle.mean, sd=oracle.sd), 0.2)
    shifted = Answer(theirs.scored._replace(mean=oracle.mean + oracle.sd, sd=2 * oracle.sd), 0.1)
    table = score_table("{} windows", {"amortized": shifted, "oracle": theirs}, oracle)
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert table["title"] == "16 windows"
    assert rows["|mean − oracle's| ÷ oracle's sd, median"] == pytest.approx([1, 0])
    assert rows["sd ÷ oracle's sd, median"] == pytest.approx([2, 1])
    assert rows["milliseconds a window"] == pytest.approx([100 / EVENTS, 200 / EVENTS])
    assert rows["amortization ratio: oracle's time ÷ its own"] == pytest.approx([2, 1])
    assert not any("k̂" in name for name in rows)  # nothing was weighed


def test_no_oracle_without_densities():
    simulator = Lorenz63Climatology()
    assert make_oracle(simulator, Batch(*(None,) * len(Batch._fields)), jax.random.key(0)) is None


def test_a_call_is_compiled_before_it_is_timed():
    calls = []
    assert timed(lambda: calls.append(1) or jnp.zeros(1)) >= 0
    assert len(calls) == 4
