"""Covariances of ensembles are their dense formulas in every method, and a cycle that carries members is the filter it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.assimilation.cases import linear, load, lorenz63, lorenz96, root_mean_square
from tests.assimilation.test_covariance import spd
from tests.slow import mostly_slow
from vardax_flax.assimilation import (
    EnsembleCycle,
    GaussNewton,
    Hybrid,
    IncrementalFourDVar,
    Localised,
    Matern,
    StrongFourDVar,
    ThreeDVar,
    WeakFourDVar,
    dense,
)
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError

MEMBERS = np.random.default_rng(0).normal(size=(4, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
STATIC = spd(6, seed=2)


def hybrid():
    return Hybrid(dense(STATIC), Localised(MEMBERS, Matern((6,), length=0.8)), 0.3)


def test_the_roots_are_those_of_the_dense_formulas(x64):
    taper = np.asarray(Matern((6,), length=0.8).as_matrix())
    localised = np.cov(MEMBERS.T) * taper
    for covariance, matrix in (
        (Localised(MEMBERS), np.cov(MEMBERS.T)),
        (Localised(MEMBERS, Matern((6,), length=0.8)), localised),
        (hybrid(), 0.7 * STATIC + 0.3 * localised),
    ):
        np.testing.assert_allclose(covariance.as_matrix(), matrix, atol=1e-12)
        np.testing.assert_allclose(covariance.diagonal(), np.diag(matrix), rtol=1e-12)
    v = np.random.default_rng(3).normal(size=6)
    np.testing.assert_allclose(hybrid().solve(jnp.asarray(v)), np.linalg.solve(matrix, v), rtol=1e-9)
    np.testing.assert_allclose(hybrid().log_det, np.linalg.slogdet(matrix)[1], rtol=1e-10)


def test_the_perturbations_are_the_anomalies_and_draws_of_the_static_part(x64):
    ensemble, static = hybrid().ensemble, dense(STATIC)
    key = jax.random.key(0)
    np.testing.assert_allclose(jax.vmap(ensemble.root)(ensemble.perturbations(key)), ensemble.anomalies, atol=1e-12)
    many = Hybrid(static, Localised(np.random.default_rng(4).normal(size=(4000, 6))), 0.3)
    anomalies = np.asarray(jax.vmap(many.root)(many.perturbations(key)))
    np.testing.assert_allclose(anomalies.T @ anomalies, many.as_matrix(), atol=0.1 * np.abs(STATIC).max())
    np.testing.assert_allclose(anomalies.sum(axis=0), 0, atol=1e-9)


@mostly_slow("method", [ThreeDVar, StrongFourDVar, WeakFourDVar, IncrementalFourDVar])
def test_a_method_under_a_hybrid_covariance_is_the_method_under_its_matrix(x64, method):
    rng = np.random.default_rng(5)
    a, b = ((rng.normal(size=(6, 6)) / 3) for _ in range(2))
    options = {"obs_cov": 0.5, "obs_op": lambda x: x[:4]}
    if method is not IncrementalFourDVar:
        options["minimiser"] = GaussNewton(inner=200, inner_tolerance=1e-10)
    if method is WeakFourDVar:
        options["model_cov"] = b @ b.T + 0.1 * np.eye(6)
    arguments = ((6,),) if method is ThreeDVar else ((6,), linear(a))
    shape = (4,) if method is ThreeDVar else (3, 4)
    batch = Batch(input=rng.normal(size=shape), mask=rng.random(shape) < 0.7, background=rng.normal(size=6))
    posteriors = [method(*arguments, background_cov=B, **options).posterior(batch) for B in (hybrid(), np.asarray(hybrid().as_matrix()))]
    mixed, plain = posteriors
    np.testing.assert_allclose(mixed.mean, plain.mean, atol=1e-6)
    np.testing.assert_allclose(mixed.covariance(), plain.covariance(), atol=1e-9)
    np.testing.assert_allclose(mixed.log_evidence, plain.log_evidence, rtol=1e-9)
    np.testing.assert_allclose(mixed.log_prob(mixed.mean + 0.1), plain.log_prob(mixed.mean + 0.1), rtol=1e-4)


def test_with_the_covariance_of_the_filter_the_cycle_is_the_kalman_filter(x64):
    rng = np.random.default_rng(6)
    a, y = rng.normal(size=(3, 3)) / 2, rng.normal(size=(5, 2))
    y[2] = np.nan
    members = rng.normal(size=(6, 3))  # more than components: their sample covariance is of full rank
    method = IncrementalFourDVar((3,), linear(a), background_cov=1.0, obs_cov=0.5, obs_op=lambda x: x[:2], observed_at_start=False)
    cycled = EnsembleCycle(method, linear(a)).run(members, y)
    mean, covariance, h = members.mean(axis=0), np.cov(members.T), np.eye(3)[:2]
    for i, row in enumerate(y):
        mean, covariance = a @ mean, a @ covariance @ a.T
        if np.isfinite(row).all():
            gain = covariance @ h.T @ np.linalg.inv(h @ covariance @ h.T + 0.5 * np.eye(2))
            mean, covariance = mean + gain @ (row - h @ mean), covariance - gain @ h @ covariance
        np.testing.assert_allclose(cycled.newest[i], mean, atol=1e-6)
        np.testing.assert_allclose(cycled.spread[i], np.sqrt(np.diag(covariance)), rtol=1e-5)


# members, window, inflation, and the error of an iterative ensemble smoother in other software (filtered, smoothed)
SMOOTHERS = [
    ("l63_sakov2012", 10, 1, 1.02, 0.245, 0.2),
    ("l63_sakov2012", 10, 2, 1.02, 0.245, 0.194),
    ("l96_sakov2008", 24, 4, 1.02, 0.161, 0.13),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "members", "window", "inflation", "filtered", "smoothed"), SMOOTHERS)
def test_the_iterative_ensemble_smoother_is_as_good_as_other_software(x64, name, members, window, inflation, filtered, smoothed):
    data = load(name)
    n, burn = data["yy"].shape[1], int(data["burn_obs"])
    step, variance, prior = (lorenz63(int(data["dko"])), 2.0, 2.0) if n == 3 else (lorenz96, 1.0, 0.001)
    first = data["x0_mu"] + np.sqrt(prior) * np.random.default_rng(0).normal(size=(members, n))
    method = IncrementalFourDVar((n,), step, background_cov=1.0, obs_cov=variance, observed_at_start=False, outer=20)
    cycled = EnsembleCycle(method, step, inflation=inflation, window=window).run(first, data["yy"])
    at = np.arange(len(cycled.newest))
    before = np.concatenate([data["start"][None], data["truth"]])
    assert root_mean_square((cycled.newest - data["truth"][at + window - 1])[burn:]) <= filtered
    assert root_mean_square((cycled.analysis - before[at])[burn:]) <= smoothed


@pytest.mark.slow
def test_a_hybrid_of_four_members_tracks_where_they_alone_do_not(x64):
    """Three directions cannot follow a flow in forty that is observed everywhere; the static part sees the rest."""
    data = load("l96_sakov2008")
    method = IncrementalFourDVar((40,), lorenz96, background_cov=1.0, obs_cov=1.0, observed_at_start=False, outer=3, inner=20)
    first = data["x0_mu"] + 0.03 * np.random.default_rng(0).normal(size=(4, 40))
    static = dense(0.02 * data["clim_cov"])
    errors = {}
    for name, covariance in (("hybrid", lambda x: Hybrid(static, Localised(x), 0.3)), ("alone", Localised)):
        cycled = EnsembleCycle(method, lorenz96, covariance=covariance).run(first, data["yy"][:60])
        errors[name] = root_mean_square((cycled.newest - data["truth"][:60])[30:])
    assert errors["hybrid"] < 0.7 and errors["alone"] > 2, errors


REDUCED = IncrementalFourDVar((3,), lambda x: x, background_cov=1.0, obs_cov=1.0, basis=np.eye(3))
METHOD = IncrementalFourDVar((3,), lambda x: x, background_cov=1.0, obs_cov=1.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Localised(np.ones((1, 3))), "two members"),
        (lambda: Localised(np.ones(3)), "two members"),
        (lambda: Localised(np.ones((2, 3)), Matern((4,), length=1.0)), "localisation of size 3"),
        (lambda: Localised(np.ones((2, 3)), Matern((3,), length=1.0, sd=2.0)), "variances 1"),
        (lambda: Hybrid(dense(np.eye(3)), Localised(np.ones((2, 3))), 0.0), "weight"),
        (lambda: Hybrid(dense(np.eye(2)), Localised(np.ones((2, 3))), 0.5), "size 2"),
        (lambda: EnsembleCycle(WeakFourDVar((3,), lambda x: x, background_cov=1.0, model_cov=1.0, obs_cov=1.0), lambda x: x), "strong"),
        (lambda: EnsembleCycle(REDUCED, lambda x: x), "basis"),
        (lambda: EnsembleCycle(METHOD, lambda x: x, inflation=0.0), "inflation"),
        (lambda: EnsembleCycle(METHOD, lambda x: x, shift=2), "shift"),
        (lambda: EnsembleCycle(METHOD, lambda x: x).run(np.ones(3), np.ones((4, 3))), "members"),
        (lambda: EnsembleCycle(METHOD, lambda x: x).run(np.ones((2, 3)), np.ones((4, 2))), "observations"),
    ],
)
def test_an_ensemble_that_does_not_fit_is_refused(make, says):
    with pytest.raises(ConfigError, match=f"expected .*{says}.*got .*; do "):
        make()
