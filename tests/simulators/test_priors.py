"""Priors of known marginals against SciPy: density, distribution function on the logit scale far into both tails, and the support."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import LogJoint, MarginalPrior
from vardax_flax.simulators import SIMULATORS, LogNormal, Normal, Product, TwoMoons, Uniform, from_functions

PRIORS = {
    "product": (
        Product((Uniform((-1.0,), (1.0,)), LogNormal((0.5,), (0.3,)))),
        [stats.uniform(-1, 2), stats.lognorm(0.3, scale=np.exp(0.5))],
    ),
    "normal": (Normal((0.0, 3.0), (1.0, 0.1)), [stats.norm(0, 1), stats.norm(3, 0.1)]),
    "uniform": (Uniform((-1.0, 0.2), (1.0, 0.3)), [stats.uniform(-1, 2), stats.uniform(0.2, 0.1)]),
    "log_normal": (LogNormal((0.0, -3.0), (1.0, 0.5)), [stats.lognorm(1), stats.lognorm(0.5, scale=np.exp(-3))]),
}
priors = mostly_slow(("prior", "known"), PRIORS.values(), quick=2, ids=PRIORS)


@priors
def test_density_and_distribution_function(prior, known, x64):
    x = np.stack([k.ppf(np.linspace(1e-12, 1 - 1e-6, 101)) for k in known], axis=-1)
    np.testing.assert_allclose(prior.log_prob(jnp.asarray(x)), sum(k.logpdf(x[:, i]) for i, k in enumerate(known)), rtol=1e-9)
    logit = np.stack([k.logcdf(x[:, i]) - k.logsf(x[:, i]) for i, k in enumerate(known)], axis=-1)
    np.testing.assert_allclose(prior.to_logit(jnp.asarray(x)), logit, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(prior.from_logit(jnp.asarray(logit)), x, rtol=1e-9, atol=1e-12)


@priors
def test_draws_have_the_distribution(prior, known):
    draws = np.asarray(jax.vmap(prior.sample)(jax.random.split(jax.random.key(0), 4000)))
    assert draws.shape == (4000, prior.size)
    assert all(stats.kstest(draws[:, i], k.cdf).pvalue > 1e-3 for i, k in enumerate(known))


@priors
def test_nothing_leaves_the_support_and_everything_stays_finite(prior, known):
    u = jnp.asarray(np.linspace(-300, 300, 601)[:, None] * np.ones(prior.size), jnp.float32)

    def there_and_back(u):
        x = prior.from_logit(u)
        return prior.log_prob(x) + prior.to_logit(x).sum(), x

    (value, x), gradient = jax.jit(jax.vmap(jax.value_and_grad(there_and_back, has_aux=True)))(u)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    assert (np.diff(np.asarray(x), axis=0) >= 0).all()


def test_the_tail_of_a_normal_is_exact_where_probabilities_underflow(x64):
    w = np.array([-1e-3, -1.0, -10.0, -40.0, -200.0])
    logit = stats.norm.logcdf(w) - stats.norm.logsf(w)
    prior = Normal((0.0,), (1.0,))
    np.testing.assert_allclose(prior.from_logit(jnp.asarray(logit)[:, None])[:, 0], w, rtol=1e-10)
    np.testing.assert_allclose(prior.from_logit(jnp.asarray(-logit)[:, None])[:, 0], -w, rtol=1e-10)
    slope = jax.jit(jax.vmap(jax.grad(lambda u: prior.from_logit(u[None])[0])))(jnp.asarray(logit))
    step = 1e-6 * np.maximum(1, abs(logit))
    ahead, behind = (np.asarray(prior.from_logit(jnp.asarray(logit + s * step)[:, None])[:, 0]) for s in (1, -1))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-5)


def test_an_edge_is_just_inside_and_beyond_it_there_is_nothing():
    prior = Uniform((-1.0,), (1.0,))
    edge = prior.to_logit(jnp.array([[-1.0], [1.0]]))
    assert 15 < edge[1, 0] < 20 and edge[0, 0] == -edge[1, 0]
    density = np.asarray(prior.log_prob(jnp.array([[-1.0], [1.0], [1.001], [jnp.nan]])))
    np.testing.assert_allclose(density, [-np.log(2), -np.log(2), -np.inf, -np.inf], rtol=1e-6)
    assert LogNormal((0.0,), (1.0,)).log_prob(jnp.zeros(1)) == -np.inf


@mostly_slow("kind", [kind for kind, cls in SIMULATORS.items() if issubclass(cls, MarginalPrior)], ["two_moons"])
def test_the_prior_of_a_task_is_that_of_its_states(kind):
    simulator = SIMULATORS[kind]()
    assert isinstance(simulator, MarginalPrior) and isinstance(simulator, LogJoint)
    elements = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), 500))
    rank = np.asarray(jax.nn.sigmoid(simulator.prior.to_logit(elements.target)))
    assert min(stats.kstest(column, "uniform").pvalue for column in rank.T) > 1e-3
    log_prior = jax.vmap(simulator.log_prior)(elements.target, elements)
    np.testing.assert_allclose(simulator.prior.log_prob(elements.target), log_prior, rtol=1e-5)


def test_a_prior_may_stand_where_a_function_does():
    prior = Product((Uniform((-1.0,), (1.0,)), LogNormal((0.0,), (1.0,))))
    simulator = from_functions(prior, jnp.tanh, noise=0.1)
    assert isinstance(simulator, LogJoint) and isinstance(simulator, MarginalPrior)
    assert simulator.prior == prior and hash(simulator.prior) == hash(prior)
    element = simulator.sample(jax.random.key(0))
    assert simulator.log_prior(element.target, element) == prior.log_prob(element.target)
    implicit = from_functions(prior, jnp.tanh, noise=lambda key, y: y + jax.random.laplace(key, y.shape))
    assert isinstance(implicit, MarginalPrior) and not isinstance(implicit, LogJoint)
    with pytest.raises(ConfigError, match="expected no `log_prior` beside a prior that has one"):
        from_functions(prior, jnp.tanh, 0.1, lambda x: 0.0)
    assert not isinstance(from_functions(prior.sample, jnp.tanh, 0.1), MarginalPrior)
    assert isinstance(TwoMoons(), MarginalPrior)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Uniform((1.0,), (1.0,)), "expected low < high"),
        (lambda: Uniform((0.0, 0.0), (1.0,)), "expected as many numbers in low and high"),
        (lambda: Normal((0.0,), (0.0,)), "expected std > 0"),
        (lambda: LogNormal((0.0,), (-1.0,)), "expected std > 0"),
        (lambda: Normal((float("nan"),), (1.0,)), "expected finite numbers in `mean`"),
        (lambda: Product(()), "expected at least one prior"),
    ],
)
def test_bad_priors_are_refused(make, words):
    with pytest.raises(ConfigError, match=f"^{words}.*, got .*; do .*$"):
        make()
