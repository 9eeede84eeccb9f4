"""`python -m eval.adjoint`: estimates that move as the oracle's pass, planted ones fail, and what has no oracle is skipped."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval import adjoint
from tests.bad_input import SMALL
from tests.slow import mostly_slow
from train.__main__ import main as train
from train.config import Experiment
from train.presets import load_preset
from vardax_flax.heads import ScoreHeadConfig
from vardax_flax.ops import gaussian
from vardax_flax.ops.gauss_newton import gauss_newton
from vardax_flax.simulators import LinearGaussian, Lorenz63, Normal, from_functions
from vardax_flax.validation.result import word

OPTIONS = adjoint.Options(events=32)
HEAD = load_preset("debug").build().head


class Known:
    """A posterior whose estimate is a function of the element."""

    def __init__(self, function, head=HEAD):
        self.function, self.head, self.state_shape = function, head, (3,)

    def __call__(self, element, key):
        return self.function(element)

    def sample(self, element, key, n):
        return self.function(element)[None]


def judge(simulator, function, head=HEAD):
    return adjoint.calibration(Experiment("known", simulator), Known(function, head), OPTIONS)


@mostly_slow(("factor", "passed"), [(1.0, True), (1.2, False), (-1.0, False)], quick=2)
def test_against_an_exact_posterior(factor, passed):
    simulator = LinearGaussian.random(3, 4)
    result = judge(simulator, lambda element: factor * simulator.posterior(element)[0])
    assert result.passed is passed
    assert result.statistic == pytest.approx(abs(factor - 1), abs=1e-3)
    assert "mean of the Gaussian against the exact posterior mean" in result.summary


@pytest.mark.slow
def test_against_the_mode_of_a_window():
    simulator = Lorenz63(steps=20)

    def mode(element):  # from the background, where the oracle starts from the truth
        return gauss_newton(lambda x, _: simulator.residual(x, element), element.background, jnp.arange(10)).x

    score = ScoreHeadConfig(width=8, depth=1).build(3, 4, nnx.Rngs(0))  # whose densities are too dear to weigh draws by
    result = judge(simulator, mode, score)
    assert result.passed is None and result.statistic < 0.01 and word(result) == "metric"
    assert "mode by Gauss–Newton, which is an estimate, so without a verdict" in result.summary
    slow = judge(simulator, lambda element: element.background + 0.8 * (mode(element) - element.background), score)
    assert slow.passed is None and slow.statistic == pytest.approx(0.2, rel=0.05)
    broken = judge(simulator, lambda element: mode(element) + jnp.sqrt(0 * element.input[0, 0]), score)
    assert broken.passed is False and "not finite" in broken.details["do"]


class Widened:
    """A posterior of a linear Gaussian problem whose draws and density are of the exact one, moved and widened."""

    def __init__(self, simulator, shift, scale):
        self.simulator, self.shift, self.scale, self.head = simulator, shift, scale, HEAD

    def _moments(self, batch):
        mean, cov = jax.vmap(self.simulator.posterior)(batch)
        root = jnp.linalg.cholesky(cov)
        return mean + self.shift * jnp.sqrt(jnp.diagonal(cov, axis1=1, axis2=2)), self.scale * root

    def sample(self, batch, key, n):
        mean, root = self._moments(batch)
        return mean[:, None] + jnp.einsum("eij,enj->eni", root, jax.random.normal(key, (len(mean), n, mean.shape[1])))

    def log_prob(self, x, batch):
        mean, root = self._moments(batch)
        return gaussian.log_prob(x, mean[:, None], root[:, None])


@mostly_slow(("shift", "scale", "kept"), [(0.3, 1.3, 32), (0.0, 1.0, 32), (0.0, 0.3, 0)])
def test_weighted_draws_move_as_the_exact_mean(shift, scale, kept):
    simulator = LinearGaussian.random(3, 4)
    batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(0), 32))
    oracle = adjoint.weighted_mean(simulator, Widened(simulator, shift, scale), batch, jax.random.key(1))
    if not kept:
        assert isinstance(oracle, str) and "usable for 0 of 32 observations" in oracle
        return
    assert len(oracle.batch.input) == kept and oracle.asked == 32

    def derivative(estimate, *data):
        return jax.vmap(jax.jacrev(lambda y, element, *data: estimate(element._replace(input=y), *data)))(batch.input, batch, *data)

    found, exact = derivative(oracle.estimate, *oracle.data), derivative(lambda element: simulator.posterior(element)[0])
    assert jnp.linalg.norm(found - exact) < 0.04 * jnp.linalg.norm(exact)


@mostly_slow("width", [0.95, 1.05])
def test_where_the_likelihood_has_an_edge_draws_that_stay_are_no_oracle(width):
    """y = x + U(−1, 1): p(y | x) is flat, so weights of fixed draws never move, but the mean moves one to one with y."""
    uniform = lambda key, x: x + jax.random.uniform(key, x.shape, minval=-1.0)  # noqa: E731
    likelihood = lambda x, element: jnp.where(jnp.abs(element.input - x).max() < 1, -jnp.log(2.0), -jnp.inf)  # noqa: E731
    simulator = from_functions(Normal((0.0,), (10.0,)), lambda x: x, noise=uniform, log_likelihood=likelihood)
    batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(0), 16))

    class Box:
        def sample(self, batch, key, n):
            return batch.input[:, None] + width * jax.random.uniform(key, (len(batch.input), n, 1), minval=-1.0)

    found = adjoint.weighted_mean(simulator, Box(), batch, jax.random.key(1))
    assert isinstance(found, str) and "has an edge" in found


def test_trajectories_that_explode_are_no_edge_and_weigh_nothing():
    simulator = Lorenz63(steps=20)
    batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(0), 16))

    class Far:  # the prior, but for the first draw
        def sample(self, batch, key, n):
            x = batch.background[:, None] + simulator.background_std * jax.random.normal(key, (len(batch.input), n, 3))
            return x.at[:, 0].set(1e4)

        def log_prob(self, x, batch):
            return jax.vmap(jax.vmap(simulator.log_prior, in_axes=(0, None)))(x, batch)

    found = adjoint.weighted_mean(dataclasses.replace(simulator, noise_std=20.0), Far(), batch, jax.random.key(1))
    derivative = jax.jacrev(lambda y, element, *data: found.estimate(element._replace(input=y), *data))
    assert np.isfinite(jax.vmap(derivative)(found.batch.input, found.batch, *found.data)).all()


def test_without_an_oracle_it_is_skipped():
    silent = from_functions(lambda key: jax.random.normal(key, (2,)), jnp.tanh, noise=0.1)  # no density of the prior
    assert "has no posterior to compare with" in judge(silent, lambda element: element.input).summary
    head = SimpleNamespace(kind="point")
    result = adjoint.calibration(Experiment("known", LinearGaussian.random(3, 4)), Known(None, head), OPTIONS)
    assert result.passed is None and "a point head has no posterior mean" in result.summary


@pytest.mark.slow
def test_a_run_that_was_hardly_trained_fails(script, tmp_path):
    run_dir = Path(tmp_path / "run")
    assert train(["debug", "--run-dir", str(run_dir), *SMALL]) == 0
    outcome = script(adjoint.main, run_dir, "--events", "32")
    assert outcome.code == 1 and outcome.out.startswith("FAILED: ")
    written = json.loads((run_dir / "adjoint.json").read_text())
    assert written["name"] == "adjoint calibration" and written["passed"] is False and len(written["details"]["per_event"]) == 32
    assert script(adjoint.main, tmp_path / "nowhere").code == 2
    assert script(adjoint.main, run_dir, "--events", "0").code == 2
