"""Agreement of covariances as a whole: what the marginals hide fails, and two estimates of one posterior pass at the stated rate."""

import numpy as np
import pytest
from scipy import stats

from vardax_flax.core.config import ConfigError
from vardax_flax.validation import assert_posterior_agreement, posterior_agreement
from vardax_flax.validation.joint import _noise

EVENTS, DIM = 40, 3
MEAN = np.random.default_rng(0).normal(size=(EVENTS, DIM))


def correlated(rho):
    """Unit variances, one correlation."""
    return np.broadcast_to(rho + (1 - rho) * np.eye(DIM), (EVENTS, DIM, DIM))


def draw(rng, n, cov, mean=MEAN):
    return mean[:, None] + rng.normal(size=(len(mean), n, DIM)) @ np.linalg.cholesky(cov[0]).T


@pytest.mark.parametrize("form", ["gaussian", "draws"])
@pytest.mark.parametrize(("fast", "oracle", "rule"), [
    (0.95, 0.999, "spread of the fast posterior under the oracle"),
    (0.999, 0.95, "spread of the oracle under the fast posterior"),
])  # fmt: skip
def test_a_wrong_thin_direction_fails_although_marginals_and_correlations_are_within_tolerance(fast, oracle, rule, form):
    cov = correlated(fast)
    p_fast = (MEAN, cov) if form == "gaussian" else draw(np.random.default_rng(1), 300, cov)
    with pytest.raises(AssertionError, match=rf"expected share of joint {rule} > 4 <= 0.05, got 1 .event .*; do (use|widen)"):
        assert_posterior_agreement(p_fast, (MEAN, correlated(oracle)))
    assert_posterior_agreement((MEAN, correlated(0.95)), (MEAN, correlated(0.97)))


def test_a_mean_that_is_off_in_a_thin_direction_fails():
    cov = correlated(0.99)
    shifted = MEAN + 0.3 * np.array([1.0, -1.0, 0.0])
    result = posterior_agreement((shifted, cov), (MEAN, cov))
    assert result.details["z"].max() < 0.31 and result.passed is False
    assert "joint squared distance of the means" in result.summary
    np.testing.assert_allclose(result.details["mahalanobis_fast"], 0.09 * 2 / 0.01 / 3, rtol=1e-6)


def test_a_covariance_without_inverse_fails():
    flat = np.array(correlated(0.99))
    flat[:] = 1.0
    assert posterior_agreement((MEAN, flat), (MEAN, correlated(0.99))).passed is False


@pytest.mark.parametrize(("n_fast", "n_oracle"), [(60, None), (None, 60), (60, 40)])
def test_equality_is_rejected_at_its_level(n_fast, n_oracle):
    rng, cov, repeats = np.random.default_rng(2), correlated(0.7), 150
    form = lambda n: (MEAN, cov) if n is None else draw(rng, n, cov)  # noqa: E731
    results = [posterior_agreement(form(n_fast), form(n_oracle), level=0.05) for _ in range(repeats)]
    low, high = stats.binom.ppf([1e-3, 1 - 1e-3], repeats, 0.05)
    assert low <= sum(not r.passed for r in results) <= high
    assert [r.passed for r in results] == [r.p_value > 0.05 for r in results]


@pytest.mark.parametrize("defect", ["correlations dropped", "sd × 0.9", "mean + 0.1 sd"])
def test_equality_catches_what_the_tolerances_let_pass(defect):
    rng, cov = np.random.default_rng(3), correlated(0.29)
    wrong = {"correlations dropped": correlated(0.0), "sd × 0.9": 0.81 * cov}.get(defect, cov)
    fast = draw(rng, 300, wrong, MEAN + 0.1 * (defect == "mean + 0.1 sd"))
    assert posterior_agreement(fast, (MEAN, cov)).passed
    with pytest.raises(AssertionError, match="expected average .*, in units of equal posteriors, <= 1.*, got .* .p = "):
        assert_posterior_agreement(fast, (MEAN, cov), level=0.05)


def test_equality_needs_draws():
    with pytest.raises(ConfigError, match="at least 20 draws on one side"):
        posterior_agreement((MEAN, correlated(0.5)), (MEAN, correlated(0.5)), level=0.05)
    with pytest.raises(ConfigError, match="0 < level < 1"):
        posterior_agreement(draw(np.random.default_rng(4), 30, correlated(0.5)), (MEAN, correlated(0.5)), level=2.0)


@pytest.mark.parametrize(("n_inverted", "n"), [(20, 30), (20, None), (20, 2)])
def test_sampling_moments_are_those_of_simulated_covariances(n_inverted, n):
    rng, repeats = np.random.default_rng(5), 20_000

    def sample_covariance(n):
        draws = rng.normal(size=(repeats, n - 1, DIM))
        return np.einsum("eni,enj->eij", draws, draws) / (n - 1)

    other = np.broadcast_to(np.eye(DIM), (repeats, DIM, DIM)) if n is None else sample_covariance(n)
    values = np.trace(np.linalg.solve(sample_covariance(n_inverted), other), axis1=1, axis2=2) / DIM
    noise = _noise(DIM, float(n_inverted), np.inf if n is None else float(n))
    assert noise.mean == pytest.approx(values.mean(), rel=0.02)
    assert 2 * noise.mean**2 / noise.degrees == pytest.approx(values.var(), rel=0.12)
