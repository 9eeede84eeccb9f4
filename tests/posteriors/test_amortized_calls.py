"""Calling a posterior from outside: what it refuses, and what it does not compile again."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.encoders import IdentityEncoderConfig
from vardax_flax.heads import RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import LinearGaussian
from vardax_flax.streams import SeedStream

SIMULATOR = LinearGaussian.random(2, 2, seed=0, noise_std=0.5, missing_rate=0.2)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def posterior():
    return build(allow_unobserved=True)


def build(**options):
    config = AmortizedConfig(encoder=IdentityEncoderConfig(), head=RegressionHeadConfig(covariance="full", width=8), **options)
    return config.build(SIMULATOR, nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch():
    return jax.tree.map(np.asarray, SeedStream(SIMULATOR, 64).held_out(64))._replace(target=None)


def rows(batch, n):
    return jax.tree.map(lambda leaf: leaf[:n], batch)


CALLS = {
    "sample": lambda posterior, batch: posterior.sample(batch, KEY, 3),
    "mode": lambda posterior, batch: posterior(batch),
    "log_prob": lambda posterior, batch: posterior.log_prob(jnp.zeros((*np.shape(batch.input)[:-1], 2)), batch),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_bad_batches_are_refused_in_one_line(posterior, batch, call):
    y, mask = batch.input[:4].copy(), np.ones((4, 2), np.float32)
    holes = y.copy()
    holes[2, 1] = np.nan
    bad = [
        (Batch(np.ones((4, 3), np.float32), np.ones((4, 3), np.float32)), ValueError, r"`input` of shape \(4, 2\), got \(4, 3\)"),
        (Batch(y, mask[:3]), ValueError, r"`mask` of shape \(4, 2\), got \(3, 2\)"),
        (Batch(y, None), ValueError, "`mask` of shape .* got None"),
        (Batch(y, mask * 0.5), ValueError, "`mask` of 0 and 1, got 0.5"),
        (Batch(y.astype(str), mask), TypeError, "`input` of a real dtype"),
        (Batch(y + 1j, mask), TypeError, "`input` of a real dtype, got complex"),
        (Batch(holes, mask), ValueError, r"finite values in `input` where observed, got nan at \(2, 1\)"),
        (Batch(y, mask, background=y), ValueError, "no `background`"),
    ]
    for one, kind, words in bad:
        with pytest.raises(kind, match=f"^expected {words}.*; do .*$"):
            call(posterior, one)


def test_bad_requests_are_refused(posterior, batch):
    with pytest.raises(ConfigError, match="expected n > 0 draws, got 0; do "):
        posterior.sample(batch, KEY, 0)
    with pytest.raises(ValueError, match=r"expected states of shape \(64, 2\) or .*, got \(64, 3\); do "):
        posterior.log_prob(jnp.zeros((64, 3)), batch)


def test_missing_values_do_not_matter_and_nothing_observed_is_an_answer(posterior, batch):
    y, mask = batch.input[:4].copy(), np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)
    first = posterior.sample(Batch(y, mask), KEY, 5)
    y[mask == 0] = np.nan
    np.testing.assert_array_equal(first, posterior.sample(Batch(y, mask), KEY, 5))
    assert np.isfinite(first).all()
    with pytest.raises(ValueError, match=r"^expected at least one observation in every window, got .* in window 3; do .*$"):
        build().sample(Batch(y, mask), KEY, 5)


def test_results_do_not_depend_on_the_size_of_the_call(posterior, batch):
    whole = posterior.sample(batch, KEY, 100)
    np.testing.assert_array_equal(posterior.sample(rows(batch, 5), KEY, 100), whole[:5])
    density = posterior.log_prob(whole, batch)
    np.testing.assert_allclose(posterior.log_prob(whole[:5, :7], rows(batch, 5)), density[:5, :7], rtol=1e-5, atol=1e-5)


def compiled(caplog, call):
    """Names of the programs that a call compiles."""
    caplog.clear()
    with jax.log_compiles(True), caplog.at_level(logging.WARNING, "jax"):
        call()
    return [record.getMessage().split()[1] for record in caplog.records if record.getMessage().startswith("Compiling ")]


def test_sizes_of_one_bucket_share_one_program(posterior, batch, caplog):
    model = compiled(caplog, lambda: posterior.sample(rows(batch, 20), KEY, 70))  # 17 to 32 rows, 65 to 72 draws
    assert any("lambda" in name for name in model), model  # the control: the model itself shows up when it is compiled
    for n, draws in ((20, 72), (17, 70), (32, 65)):
        again = compiled(caplog, lambda n=n, draws=draws: posterior.sample(rows(batch, n), KEY, draws))
        assert not any("lambda" in name for name in again), again
        # the very same sizes compile nothing at all
        assert compiled(caplog, lambda n=n, draws=draws: posterior.sample(rows(batch, n), KEY, draws)) == []
    assert any("lambda" in name for name in compiled(caplog, lambda: posterior.sample(rows(batch, 20), KEY, 73)))
