"""The table of sizes and powers: its verdicts are those of the gates, and it runs."""

import jax
import numpy as np
import pytest

from eval.bench import gates
from eval.bench.__main__ import main
from vardax_flax.core.config import ConfigError
from vardax_flax.validation import RankPass, coverage_from_ranks, sbc_from_ranks, tarp_from_ranks

NAMES = ("x[0]", "x[1]", "x[2]", "product", "log q", "log likelihood", "log prior", "tarp")


def test_verdicts_over_all_repetitions_are_those_of_the_gates():
    rng, repetitions, n = np.random.default_rng(0), 40, 60
    ranks = rng.integers(0, 100, (repetitions, n, len(NAMES)))
    for column in (0, 4, 7):  # some repetitions with some departure, of all sizes
        some = rng.choice(repetitions, 12, replace=False)
        ranks[some, :, column] = (ranks[some, :, column] * rng.uniform(0.6, 1.0, (12, 1))).astype(int)
    flat = ranks.reshape(-1, len(NAMES))
    nothing = np.zeros((len(flat), 1))
    ranked = RankPass(NAMES, flat, 99, np.zeros(len(flat), bool), np.arange(1), nothing, nothing, {})
    verdicts = gates.from_ranks(ranked, n)
    parts = [ranked._replace(ranks=r, failed=np.zeros(n, bool), zscore=nothing[:n], contraction=nothing[:n]) for r in ranks]
    for name, gate in (("SBC", sbc_from_ranks), ("coverage", coverage_from_ranks), ("TARP", tarp_from_ranks)):
        expected = np.array([not gate(part).passed for part in parts])
        assert 3 < expected.sum() < repetitions - 3
        np.testing.assert_array_equal(verdicts[name], expected)


def test_worlds_have_the_moments_and_densities_they_say():
    for name, case in gates.cases().items():
        y = np.array([[0.5, -1.0]])
        batch = gates.Batch(np.float32(y), np.ones_like(y))
        x = np.asarray(case.posterior.sample(batch, jax.random.key(0), 40_000))[0]
        mean, cov = case.posterior.moments(y)
        np.testing.assert_allclose(x.mean(axis=0), mean[0], atol=0.05, err_msg=name)
        if not case.posterior.student:  # whose sample covariance has no variance
            np.testing.assert_allclose(np.cov(x.T), cov[0], atol=0.04, err_msg=name)
        if case.exact:
            assert case.posterior is case.world


@pytest.mark.slow
def test_a_short_table(monkeypatch, capsys):
    known = gates.cases()
    monkeypatch.setattr(gates, "cases", lambda: {name: known[name] for name in ("exact", "sign of the mean flipped")})
    monkeypatch.setattr(gates, "RUNS", 100)
    assert main(["gates", "--repetitions", "3"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| sign of the mean flipped"))
    assert row.count("1.000") >= 5 and "SBC" in row
    assert "3 repetitions" in out and "no gate catches with power 0.95: none" in out
    with pytest.raises(ConfigError, match="at least 2 repetitions"):
        main(["gates", "--repetitions", "1"])
