"""The null distributions are exact: against enumeration, against simulation, and against scipy where it has the same test."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError
from vardax_flax.validation import (
    chi2_uniform,
    detectable,
    ecdf_band,
    gamma_p_value,
    gamma_statistic,
    holm,
    randomised_ranks,
    rank_counts,
    rank_grid,
)
from vardax_flax.validation.ranks import rank_shape


def test_p_value_of_gamma_matches_enumeration() -> None:
    """All 6^5 rank vectors of N = 5 runs and L = 5 draws, each equally likely."""
    n_runs, n_samples = 5, 5
    grid = rank_grid(n_runs, n_samples)
    z = grid / (n_samples + 1)
    every = np.array(list(itertools.product(range(n_samples + 1), repeat=n_runs))).T
    gammas = gamma_statistic(rank_counts(every, grid), z, n_runs)
    for gamma in np.unique(gammas)[:12]:
        exact = (gammas <= gamma * (1 + 1e-9)).mean()
        assert gamma_p_value(float(gamma), z, n_runs) == pytest.approx(exact, rel=1e-9)


@mostly_slow(("n_runs", "n_samples"), [(500, 99), (200, 999), (60, 9)])
def test_p_values_of_gamma_are_uniform_on_uniform_ranks(n_runs: int, n_samples: int) -> None:
    ranks = np.random.default_rng(n_runs).integers(0, n_samples + 1, (n_runs, 200))
    grid = rank_grid(n_runs, n_samples)
    z = grid / (n_samples + 1)
    p = np.array([gamma_p_value(float(g), z, n_runs) for g in gamma_statistic(rank_counts(ranks, grid), z, n_runs)])
    for level in (0.01, 0.05, 0.2, 0.5):
        low, high = stats.binom.ppf([1e-4, 1 - 1e-4], 200, level)
        assert low - 200 * 0.05 * level <= (p <= level).sum() <= high  # discrete counts may reject a little less than stated
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_band_holds_simultaneously_and_no_more_than_that() -> None:
    n_runs, grid = 500, rank_grid(500, 99)
    band = ecdf_band(grid / 100, n_runs, 0.1)
    ranks = np.random.default_rng(1).integers(0, 100, (n_runs, 2000))
    counts = rank_counts(ranks, grid)
    outside = ((counts < band.lower) | (counts > band.upper)).any(axis=-1)
    assert 0.075 < outside.mean() < 0.125
    assert gamma_p_value(band.gamma, band.z, n_runs) <= 0.1
    # what leaves the band is what the p-value rejects
    rejected = np.array([gamma_p_value(float(g), band.z, n_runs) for g in gamma_statistic(counts[:100], band.z, n_runs)]) <= 0.1
    np.testing.assert_array_equal(rejected, outside[:100])


def test_power_against_a_narrow_posterior() -> None:
    """sd × 0.9 with N = 500 and L = 99 is detected about every second time."""
    rng, n_runs, n_samples, repeats = np.random.default_rng(2), 500, 99, 120
    truth = rng.normal(size=(n_runs, repeats))
    ranks = rng.binomial(n_samples, stats.norm.cdf(truth / 0.9))
    grid = rank_grid(n_runs, n_samples)
    gamma = gamma_statistic(rank_counts(ranks, grid), grid / 100, n_runs)
    power = np.mean([gamma_p_value(float(g), grid / 100, n_runs) <= 0.05 for g in gamma])
    assert 0.40 < power < 0.70


def test_detectable_defect_is_detected_at_least_that_often() -> None:
    n_runs, n_samples, repeats = 500, 999, 200
    grid = rank_grid(n_runs, n_samples)
    band = ecdf_band(grid / (n_samples + 1), n_runs)
    size = detectable(band, power=0.8)
    assert size["narrow"] < 1 < size["wide"] and 0.05 < size["shift"] < 0.3
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(n_runs, repeats))
    for pit in (stats.norm.cdf(truth + size["shift"]), stats.norm.cdf(truth / size["narrow"]), stats.norm.cdf(truth / size["wide"])):
        counts = rank_counts(rng.binomial(n_samples, pit), grid)
        assert ((counts < band.lower) | (counts > band.upper)).any(axis=-1).mean() > 0.72
    assert np.isnan(detectable(ecdf_band(np.array([0.5]), 4))["shift"])


def test_chi2_matches_scipy_and_is_uniform_at_its_small_levels() -> None:
    ranks = np.random.default_rng(4).integers(0, 100, (1000, 1000))
    statistic, p = chi2_uniform(ranks, 99)
    observed = np.histogram(ranks[:, 0], np.arange(0, 101, 5))[0]
    reference = stats.chisquare(observed)
    assert statistic[0] == pytest.approx(reference.statistic) and p[0] == pytest.approx(reference.pvalue)
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], 1000, 0.01)
    assert low <= (p <= 0.01).sum() <= high


@pytest.mark.parametrize(("n_runs", "n_samples"), [(40, 99), (55, 10), (1000, 12), (20, 9)])
def test_chi2_keeps_ten_expected_counts_with_unequal_bins(n_runs: int, n_samples: int) -> None:
    _, p = chi2_uniform(np.random.default_rng(5).integers(0, n_samples + 1, (n_runs, 2000)), n_samples)
    assert 0.03 < (p <= 0.05).mean() < 0.075


def test_chi2_sees_what_the_ecdf_hardly_does() -> None:
    """Every second bin empty: the distribution function stays within one bin of the diagonal."""
    ranks = (np.random.default_rng(6).integers(0, 50, (1000, 1)) // 5) * 10 + np.random.default_rng(7).integers(0, 5, (1000, 1))
    assert chi2_uniform(ranks, 99)[1][0] < 1e-12


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])


def test_ranks_break_ties_at_random_and_evenly() -> None:
    samples, truth = jnp.zeros((4000, 9)), jnp.zeros(4000)
    ranks = np.asarray(randomised_ranks(samples, truth, jax.random.key(0)))
    assert stats.chisquare(np.bincount(ranks, minlength=10)).pvalue > 1e-3
    half = jnp.concatenate([jnp.full((4000, 4), -1.0), jnp.zeros((4000, 3)), jnp.ones((4000, 2))], axis=1)
    ranks = np.asarray(randomised_ranks(half, truth, jax.random.key(1)))
    assert set(ranks.tolist()) == {4, 5, 6, 7}
    assert randomised_ranks(jnp.array([1.0, 2.0, 4.0]), jnp.array(3.0), jax.random.key(0)) == 2


@pytest.mark.parametrize("z", [[], [0.0, 0.5], [0.5, 1.0], [0.5, 0.4]])
def test_band_refuses_levels_that_are_none(z: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected increasing levels"):
        ecdf_band(np.array(z), 100)


@pytest.mark.parametrize(("n_runs", "n_samples"), [(20, 9), (1000, 99), (2000, 999)])
def test_p_values_stay_monotone_and_positive_far_out(n_runs: int, n_samples: int) -> None:
    z = rank_grid(n_runs, n_samples) / (n_samples + 1)
    gammas = np.geomspace(1e-300, 1.0, 60)
    p = np.array([gamma_p_value(float(g), z, n_runs) for g in gammas])
    assert (p >= 0).all() and (np.diff(p[gammas > 1e-10]) >= -1e-12).all()
    assert (p <= np.minimum(1.0, gammas * len(z)) * (1 + 1e-6) + 1e-12).all()  # never above the union bound
    assert p[0] < 1e-290 and p[-1] == 1.0


@pytest.mark.parametrize(
    ("a", "b", "shape"),
    [
        (0.6, 0.6, "draws too narrow"),
        (1.7, 1.7, "draws too wide"),
        (1.5, 1.0, "draws too low"),
        (1.0, 1.5, "draws too high"),
        (1.0, 1.0, "uneven ranks"),
    ],
)
def test_ranks_are_put_into_words(a: float, b: float, shape: str) -> None:
    ranks = np.floor(100 * np.random.default_rng(3).beta(a, b, 2000))
    assert rank_shape(ranks, 99) == shape
