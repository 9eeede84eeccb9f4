"""The scores of fields on draws whose scores are known."""

import numpy as np
import pytest

from eval.bench.__main__ import main
from eval.bench.fields import BANDS, analysis_table, band_power, coverage_90, exact_crps, load_fields, middle_day, scores, table
from vardax_flax.core.config import ConfigError


def test_the_stored_fields_have_the_published_scores():
    fields = load_fields()
    assert fields.batch.input.shape == fields.batch.mask.shape == (4, 15, 64, 64)
    assert fields.batch.mask.sum(axis=(1, 2, 3)).tolist() == [4109, 5430, 4734, 4934]
    assert np.isfinite(fields.batch.input).all()
    np.testing.assert_allclose(exact_crps(fields).mean(axis=(1, 2)), [0.1259, 0.1193, 0.0956, 0.1009], atol=1e-4)
    error = np.sqrt(np.square(fields.mean - fields.truth).mean(axis=(1, 2)))
    np.testing.assert_allclose(error, [0.2442, 0.2270, 0.1846, 0.1961], atol=1e-4)


def test_bands_share_the_variance():
    x = np.random.default_rng(0).standard_normal((3, 16, 16))
    wave = np.cos(2 * np.pi * 3 * np.arange(16) / 16) * np.ones((16, 1))
    np.testing.assert_allclose(band_power(x).sum(axis=-1), x.var(axis=(1, 2)), rtol=1e-9)
    np.testing.assert_allclose(band_power(wave), 0.5 * (np.array(BANDS[:-1]) == 2), atol=1e-12)


def test_draws_around_the_exact_mean_score_as_the_exact_posterior():
    fields = load_fields()
    noise = np.random.default_rng(0).standard_normal((4, 64, 64, 64)).astype(np.float32)
    row = scores(fields.mean[:, None] + fields.std[:, None] * noise, fields)
    np.testing.assert_allclose(row["rmse"], row["exact_rmse"], rtol=0.02)
    np.testing.assert_allclose(row["crps"], row["exact_crps"], rtol=0.01)
    np.testing.assert_allclose(row["std_to_exact"], 1, atol=0.01)
    assert abs(row["spread_skill"] - 1) < 0.05
    assert row["spectrum"][-1] > 5  # noise without correlation is no field
    assert row["resolved"][0] and not row["resolved"][-1]
    within = np.abs((fields.truth - fields.mean) / fields.std) < 1.645  # the exact posterior's 90 %
    assert abs(np.mean(row["coverage"]) - within.mean()) < 0.02
    assert "1.0" in table(row, 64) and table(row, 64).count("\n| ") == 10


def test_coverage_is_nominal_whatever_the_number_of_draws():
    for n in (19, 40, 64):
        numbers = np.random.default_rng(n).standard_normal((n + 1, 200, 200))
        assert abs(coverage_90(numbers[1:], numbers[0]) - 0.9) < 0.01
    assert np.isnan(coverage_90(numbers[:18], numbers[0]))


def test_the_middle_day_of_windows():
    x = np.random.default_rng(0).standard_normal((4, 2, 5, 8, 8))
    np.testing.assert_array_equal(middle_day(x), x[:, :, 2])
    np.testing.assert_array_equal(middle_day(x[:, :, 0]), x[:, :, 0])


def test_an_analysis_that_is_the_exact_mean():
    fields = load_fields()
    x = np.zeros((4, 15, 64, 64))
    x[:, 7] = fields.mean
    text = analysis_table({"analysis": x, "zero": np.zeros_like(x)}, fields)
    assert "| analysis | 0.2130 | 1.000 |" in text and "| exact | 0.2130 | 1.000 |" in text
    assert "| zero | 1.0089 | 4.737 |" in text


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ConfigError, match="expected at least 2 draws, got 1; do "):
        main(["fields", str(tmp_path), "--draws", "1"])
    with pytest.raises(ConfigError, match="expected a configuration at .*, got no file; do "):
        main(["fields", str(tmp_path)])
