"""The two-level Lorenz-96 model: its equations written out, its energy, its scales, and what is observed of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError, from_dict
from vardax_flax.simulators import Lorenz96TwoLevel


def written_out(x, n, forcing, h, b, c):
    slow, fast = x[:n], x[n:]
    per, m = len(fast) // n, len(fast)
    driven = [h * c / b * fast[k * per : (k + 1) * per].sum() for k in range(n)]
    d_slow = [(slow[(k + 1) % n] - slow[k - 2]) * slow[k - 1] - slow[k] + forcing - driven[k] for k in range(n)]
    d_fast = [
        c * b * (fast[j - 1] - fast[(j + 2) % m]) * fast[(j + 1) % m] - c * fast[j] + h * c / b * slow[j // per] for j in range(m)
    ]
    return np.array(d_slow + d_fast)


def test_the_tendency_is_that_of_the_equations(x64):
    simulator = Lorenz96TwoLevel(n_slow=5, n_fast=3, forcing=7.0, coupling=0.9, scale_ratio=8.0, time_ratio=4.0)
    x = np.random.default_rng(0).normal(size=20)
    np.testing.assert_allclose(simulator.tendency(jnp.asarray(x)), written_out(x, 5, 7.0, 0.9, 8.0, 4.0), rtol=1e-12)
    np.testing.assert_allclose(simulator.tendency(jnp.asarray(np.stack([x, 2 * x])))[0], simulator.tendency(jnp.asarray(x)), rtol=1e-12)


def test_advection_and_coupling_keep_the_energy(x64):
    simulator = Lorenz96TwoLevel()
    x = jnp.asarray(simulator.attractor()[0])
    slow, fast = x[:8], x[8:]
    expected = -(slow @ slow) + 20 * slow.sum() - 10 * (fast @ fast)
    np.testing.assert_allclose(x @ simulator.tendency(x), expected, rtol=1e-10)


def test_the_fast_variables_are_smaller_and_faster():
    simulator = Lorenz96TwoLevel()
    bank = simulator.attractor()
    slow, fast = bank[:, :8], bank[:, 8:]
    assert 5 < slow.std() / fast.std() < 20
    change = np.asarray(jax.vmap(simulator.tendency)(jnp.asarray(bank[::16])))
    assert change[:, 8:].std() / fast.std() > 2 * change[:, :8].std() / slow.std()


@mostly_slow(("observed", "sites"), [("slow", 8), ("all", 72)])
def test_what_is_observed(observed, sites):
    simulator = Lorenz96TwoLevel(observed=observed)
    x = simulator.draw_attractor(jax.random.key(0))
    clean = simulator.predict(x)
    np.testing.assert_allclose(clean, simulator.trajectory(x)[10::10, :sites], rtol=1e-5)
    noisy = jax.jit(jax.vmap(lambda key: simulator.observe(x, key)[0]))(jax.random.split(jax.random.key(1), 2000)) - clean
    np.testing.assert_allclose(noisy.std(axis=(0, 1)), 0.5 * simulator.scales()[:sites], rtol=0.1)


@pytest.mark.parametrize(
    "options", [{"observed": "fast"}, {"n_slow": 3}, {"n_fast": 0}, {"time_ratio": 0.0}, {"forcing": float("nan")}, {"dt": 0.0}]
)
def test_a_field_out_of_its_range_is_refused(options):
    with pytest.raises(ConfigError, match="expected .* got .* do "):
        from_dict(Lorenz96TwoLevel, options)
