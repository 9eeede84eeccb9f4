"""The gates: statistical tests with a stated null and rate of false alarms, and the metrics read beside them."""

from vardax_flax.validation.adjoint import adjoint_calibration, assert_adjoint_calibrated
from vardax_flax.validation.agreement import assert_posterior_agreement, posterior_agreement
from vardax_flax.validation.c2st import c2st
from vardax_flax.validation.coverage import assert_coverage, coverage, coverage_from_ranks
from vardax_flax.validation.ensemble import crps, ensemble_scores, rmse, spread_skill
from vardax_flax.validation.forward import assert_forward_agreement, forward_agreement
from vardax_flax.validation.importance import assert_importance_quality, importance_from_log_ratios, importance_quality
from vardax_flax.validation.rank_pass import RankPass, rank_pass
from vardax_flax.validation.ranks import (
    Band,
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
from vardax_flax.validation.result import GateResult, assert_passed, skipped, to_json
from vardax_flax.validation.sbc import assert_sbc, sbc_from_ranks, simulation_based_calibration
from vardax_flax.validation.tangent import assert_tangent_and_adjoint, dot_product_test, taylor_test
from vardax_flax.validation.tarp import assert_tarp, tarp, tarp_from_ranks

__all__ = [
    "Band",
    "GateResult",
    "RankPass",
    "adjoint_calibration",
    "assert_adjoint_calibrated",
    "assert_coverage",
    "assert_forward_agreement",
    "assert_importance_quality",
    "assert_passed",
    "assert_posterior_agreement",
    "assert_sbc",
    "assert_tangent_and_adjoint",
    "assert_tarp",
    "c2st",
    "chi2_uniform",
    "coverage",
    "coverage_from_ranks",
    "crps",
    "detectable",
    "dot_product_test",
    "ecdf_band",
    "ensemble_scores",
    "forward_agreement",
    "gamma_p_value",
    "gamma_statistic",
    "holm",
    "importance_from_log_ratios",
    "importance_quality",
    "posterior_agreement",
    "randomised_ranks",
    "rank_counts",
    "rank_grid",
    "rank_pass",
    "rmse",
    "sbc_from_ranks",
    "simulation_based_calibration",
    "skipped",
    "spread_skill",
    "tarp",
    "tarp_from_ranks",
    "taylor_test",
    "to_json",
]
