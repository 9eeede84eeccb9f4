"""Every method that applies gives the exact smoother of a linear Gaussian model: means, covariances, evidence, whatever is observed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.assimilation.cases import linear, load
from tests.slow import mostly_slow
from vardax_flax.assimilation import (
    EnsembleCovariance,
    GaussNewton,
    GaussNewtonHessian,
    IncrementalFourDVar,
    LaplaceCovariance,
    NotConverged,
    OptimalInterpolation,
    QuasiNewton,
    Status,
    StrongFourDVar,
    ThreeDVar,
    WeakFourDVar,
    dense,
    multi_start,
)
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError

NEWTON = GaussNewton(inner=300, inner_tolerance=1e-10)
METHODS = {
    "weak": (WeakFourDVar, {"minimiser": NEWTON}),
    "weak by L-BFGS": (WeakFourDVar, {}),
    "strong": (StrongFourDVar, {"minimiser": NEWTON}),
    "strong by L-BFGS": (StrongFourDVar, {}),
    "strong by BFGS": (StrongFourDVar, {"minimiser": QuasiNewton("bfgs")}),
    "incremental": (IncrementalFourDVar, {"inner": 300}),
    "strong, checkpointed": (StrongFourDVar, {"forward_adjoint": jax.checkpoint}),
}


def case(name):
    data, kind = load("lg_smoother"), name.split()[0].replace("incremental", "strong").rstrip(",")
    batch = Batch(input=data[f"y_{kind}"], mask=data["mask"].astype(float), background=data["xb"])
    return data, kind, batch


def method_of(name):
    data, kind, _ = case(name)
    cls, options = METHODS[name]
    model_error = {"model_cov": data["Q"]} if kind == "weak" else {}
    return cls((20,), linear(data["A"]), background_cov=data["B"], obs_cov=data["Rv"], observed_at_start=False, **model_error, **options)


@mostly_slow("name", METHODS, ["weak", "strong"])
def test_a_window_is_smoothed_exactly(x64, name):
    data, kind, batch = case(name)
    posterior = method_of(name).posterior(batch, window=True)
    found = posterior.provenance
    assert found.status == Status.CONVERGED
    np.testing.assert_allclose(posterior.mean, data[f"{kind}_mean"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(posterior.std, data[f"{kind}_std"], rtol=1e-6)
    np.testing.assert_allclose(posterior.covariance(), data[f"{kind}_cov"], atol=1e-6)  # stored in float32
    np.testing.assert_allclose(posterior.log_evidence, data[f"{kind}_logZ"], rtol=1e-9)
    np.testing.assert_allclose(found.cost, data[f"{kind}_Jmin"], rtol=1e-9)
    assert found.versions["jax"] == jax.__version__ and found.method == type(method_of(name)).__name__


@functools.cache
def strong_posterior(strategy):
    return method_of("strong").posterior(case("strong")[2], strategy, window=True)


def test_the_full_hessian_of_a_linear_model_is_that_of_gauss_newton(x64):
    np.testing.assert_allclose(strong_posterior(LaplaceCovariance()).std, load("lg_smoother")["strong_std"], rtol=1e-9)


def test_lanczos_finds_the_covariance_within_a_percent(x64):
    np.testing.assert_allclose(strong_posterior(GaussNewtonHessian(n_krylov=15)).std, load("lg_smoother")["strong_std"], rtol=0.01)


@pytest.mark.slow
def test_few_lanczos_vectors_err_towards_the_prior(x64):
    exact, few = load("lg_smoother")["strong_std"], strong_posterior(GaussNewtonHessian(n_krylov=3)).std
    assert (few >= exact * (1 - 1e-6)).all() and (few > 1.01 * exact).any()


@pytest.mark.slow
def test_perturbed_solutions_spread_as_the_posterior(x64):
    spread = strong_posterior(EnsembleCovariance(members=2000)).std
    # the standard error of a standard deviation is 1 / √(2 × 1999) = 1.6 %, and there are 220 of them
    np.testing.assert_allclose(spread, load("lg_smoother")["strong_std"], rtol=0.07)


def test_draws_product_and_density_are_those_of_the_covariance(x64):
    data, _, batch = case("weak")
    posterior = method_of("weak").posterior(batch, window=True)
    covariance = np.asarray(posterior.covariance())
    draws = np.asarray(posterior.sample(jax.random.key(0), 4000)).reshape(4000, -1)
    np.testing.assert_allclose(draws.std(axis=0), data["weak_std"].ravel(), rtol=0.06)
    x = jnp.asarray(draws[0].reshape(11, 20))
    np.testing.assert_allclose(posterior.matvec(x).ravel(), covariance @ draws[0], rtol=1e-9, atol=1e-12)
    departure = draws[0] - np.asarray(posterior.mean).ravel()
    expected = -0.5 * (departure @ np.linalg.solve(covariance, departure) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    np.testing.assert_allclose(posterior.log_prob(x), expected, rtol=1e-7)
    np.testing.assert_allclose(posterior.log_prob(jnp.stack([x, x])), [expected, expected], rtol=1e-7)


@mostly_slow("method", [OptimalInterpolation, ThreeDVar])
@mostly_slow("correlated", [True, False])
def test_one_time_is_the_brute_force_conditional_under_any_mask_and_correlated_errors(x64, method, correlated):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 8)), rng.normal(size=(4, 6))
    prior, operator = a @ a.T, rng.normal(size=(4, 5))
    errors = b @ b.T if correlated else np.diag([0.5, 1.0, 2.0, 4.0])
    masks = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1.0]])
    y, background = rng.normal(size=(3, 4)), rng.normal(size=(3, 5))
    oi = method((5,), background_cov=dense(prior), obs_cov=errors, obs_op=lambda x: jnp.asarray(operator) @ x)
    batch = Batch(input=np.where(masks == 1, y, np.nan), mask=masks, background=background)
    posterior = oi.posterior(batch)
    for i, mask in enumerate(masks):
        seen = mask == 1
        h, r = operator[seen], errors[np.ix_(seen, seen)]
        gain = prior @ h.T @ np.linalg.inv(h @ prior @ h.T + r)
        np.testing.assert_allclose(posterior.mean[i], background[i] + gain @ (y[i, seen] - h @ background[i]), atol=1e-5)
        np.testing.assert_allclose(posterior.covariance()[i], prior - gain @ h @ prior, atol=1e-9)
    np.testing.assert_allclose(oi(batch), posterior.mean, atol=1e-12)


def test_errors_that_vary_come_with_the_batch(x64):
    scale = np.array([[0.5, 2.0, 1.0]])
    batch = Batch(input=np.ones((1, 3)), mask=np.ones((1, 3)), background=np.zeros((1, 3)), noise_scale=scale)
    np.testing.assert_allclose(OptimalInterpolation((3,), background_cov=1.0)(batch), 1 / (1 + scale**2), rtol=1e-12)


def test_a_mask_and_the_dynamics_are_in_the_covariance(x64):
    # four times of the identity model, of which three are seen: 1 / (1 + 3), where a formula without mask and window says 1 / 2
    method = StrongFourDVar((1,), lambda x: x, background_cov=1.0, obs_cov=1.0)
    batch = Batch(input=np.zeros((4, 1)), mask=np.array([[1.0], [1], [0], [1]]), background=np.zeros(1))
    np.testing.assert_allclose(method.posterior(batch).diag(), 0.25, rtol=1e-9)


def test_cutting_a_batch_changes_nothing(x64):
    rng = np.random.default_rng(1)
    method = StrongFourDVar((3,), lambda x: 0.9 * x, background_cov=1.0, obs_cov=0.5)
    batch = Batch(input=rng.normal(size=(2, 3, 4, 3)), mask=np.ones((2, 3, 4, 3)), background=rng.normal(size=(2, 3, 3)))
    whole = method.solve(batch)
    assert whole.state.shape == (2, 3, 3) and whole.solve.status.shape == (2, 3)
    part = method(jax.tree.map(lambda leaf: leaf[1, 2], batch))
    np.testing.assert_allclose(part, whole.state[1, 2], rtol=1e-9)


@mostly_slow("method", [OptimalInterpolation, ThreeDVar])
def test_perturbed_solutions_perturb_the_prior_too(x64, method):
    # half the variance is the prior's: an ensemble that perturbs the observations alone has a quarter
    options = {} if method is OptimalInterpolation else {"minimiser": GaussNewton()}
    batch = Batch(input=np.zeros(2), mask=np.ones(2), background=np.zeros(2))
    posterior = method((2,), background_cov=1.0, obs_cov=1.0, **options).posterior(batch, EnsembleCovariance(members=2000))
    np.testing.assert_allclose(posterior.diag(), 0.5, rtol=0.1)


def test_optimal_interpolation_does_not_depend_on_where_it_starts(x64):
    method = OptimalInterpolation((2,), background_cov=1.0, obs_cov=[1.0], obs_op=lambda x: x[:1])
    batch = Batch(input=np.array([[2.0], [4.0]]), mask=np.ones((2, 1)), background=np.zeros((2, 2)))
    found = multi_start(method, batch, 4, jax.random.key(0))
    np.testing.assert_allclose(found.costs, np.array([[1.0] * 4, [4.0] * 4]), rtol=1e-12)
    np.testing.assert_allclose(found.analysis.state, [[1.0, 0.0], [2.0, 0.0]], atol=1e-12)


def test_a_posterior_says_that_its_mean_is_no_minimum_and_a_second_compiles_nothing(x64):
    method = IncrementalFourDVar((1,), lambda x: x + 0.1 * x**3, background_cov=1.0, obs_cov=1e-4, outer=1)
    batch = Batch(input=np.full((3, 1), 2.0), mask=np.ones((3, 1)), background=np.zeros(1))
    with pytest.warns(NotConverged, match="out of steps"):
        method.posterior(batch)
    traces = []
    method = StrongFourDVar((1,), lambda x: (traces.append(1), 0.9 * x)[1], background_cov=1.0, obs_cov=1.0, minimiser=GaussNewton())
    for _ in range(2):
        posterior = method.posterior(batch)
        posterior.sample(jax.random.key(0), 3), posterior.diag(), method(batch)
        count, traces = len(traces), []
    assert count == 0


def test_a_step_of_a_cycle_compiles_an_operator_once(x64):
    traces, errors = [], np.array([0.5])
    operator = lambda x: (traces.append(1), x[:1])[1]  # noqa: E731
    step = ThreeDVar((2,), background_cov=1.0, obs_cov=1.0, minimiser=GaussNewton()).as_analysis_step()
    for i in range(3):
        step(np.ones(2), np.array([4.0]), obs_op=operator, obs_err_cov=errors)
        count = len(traces) if i == 0 else count
    assert len(traces) == count


def test_an_inner_loop_cut_short_knows_how_far_it_is(x64):
    """Steepest descent on a long valley: each step is short, the minimum is not near."""
    stiff = jnp.array([1e3, 1.0, 0.0])
    residual = lambda w: jnp.concatenate([w, stiff * (w - 1)])  # noqa: E731
    exact = 1 - 1 / (1 + stiff**2)
    for outer in (2, 5, 20):
        solve = GaussNewton(outer=outer, inner=1)(residual, jnp.zeros(3))
        away = jnp.linalg.norm(jnp.sqrt(1 + stiff**2) * (solve.control - exact))
        assert solve.distance >= away or solve.converged and away <= 1e-6


def test_a_curvature_that_is_no_minimums_is_nan(x64):
    method = StrongFourDVar((1,), lambda x: x**2, background_cov=1.0, obs_cov=0.1, observed_at_start=False, minimiser=GaussNewton())
    batch = Batch(input=np.array([[4.0]]), mask=np.ones((1, 1)), background=np.zeros(1))  # from 0 the gradient is 0: a saddle
    assert np.isnan(method.posterior(batch, LaplaceCovariance()).diag()).all()


def test_a_curvature_too_large_to_write_out_is_refused_by_name():
    method = ThreeDVar((5000,), background_cov=1.0, obs_cov=1.0, obs_op=lambda x: x[:1], minimiser=GaussNewton())
    batch = Batch(input=np.ones(1), mask=np.ones(1), background=np.zeros(5000))
    with pytest.raises(ConfigError, match="n_krylov"):
        method.posterior(batch)
