"""What calibration costs, measured on a handful of runs."""

import pytest

from eval.bench.sbc_cost import beside_a_loop


@pytest.mark.slow
def test_the_table_holds_a_run_of_each_kind_and_their_ratios():
    cost = beside_a_loop("linear_gaussian", n_runs=20, n_samples=9)
    assert set(cost) == {"plain", "loop", "pass", "plain / pass", "loop / pass"}
    assert all(value > 0 for value in cost.values())
