"""Whole trajectories: solutions of the model, on the attractor, seen where the set-up says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.core.config import ConfigError
from vardax_flax.simulators import Lorenz63Trajectory, Lorenz96Trajectory

SYSTEMS = [Lorenz63Trajectory(), Lorenz96Trajectory(steps=60)]


def draw(simulator, n=64):
    return jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), n))


@pytest.mark.parametrize("simulator", SYSTEMS, ids=lambda s: s.kind)
def test_the_truth_is_a_solution_on_the_attractor(simulator):
    x = draw(simulator).target
    ahead = jax.vmap(jax.vmap(simulator.step))(x[:, :-1])
    np.testing.assert_allclose(x[:, 1:], ahead, rtol=1e-4, atol=1e-4)
    bank = simulator.attractor()
    np.testing.assert_allclose(x.std(), bank.std(), rtol=0.1)
    # no trajectory stays near a fixed point, where a constant would be hard to beat
    assert float(x.std(axis=1).mean(axis=-1).min()) > 0.2 * bank.std()


@pytest.mark.parametrize("simulator", SYSTEMS, ids=lambda s: s.kind)
def test_noise_has_its_variance_and_only_where_observed(simulator):
    batch = draw(simulator, 256)
    noise = np.asarray(batch.input - batch.target)[np.asarray(batch.mask) > 0]
    np.testing.assert_allclose(noise.std(), np.sqrt(2), rtol=0.03)
    assert float(jnp.abs(jnp.where(batch.mask > 0, 0, batch.input)).max()) == 0


def test_where_lorenz63_is_seen():
    mask = np.asarray(draw(Lorenz63Trajectory(), 2).mask)
    np.testing.assert_array_equal(np.flatnonzero(mask[0, :, 1]), np.arange(10, 190, 8))
    assert (mask[0] == mask[1]).all()


def test_where_lorenz96_is_seen():
    mask = np.asarray(draw(SYSTEMS[1], 64).mask)
    sites = mask.sum(axis=-1)
    assert (sites[:, ::4] == 20).all() and sites.sum() == 20 * 15 * 64
    assert (mask[:, 0] != mask[:, 4]).any(axis=-1).all()  # a fresh set each time
    np.testing.assert_allclose(mask[:, ::4].mean(axis=(0, 1)), 0.5, atol=0.06)  # every site as often as others


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Lorenz63Trajectory, {"margin": 100}),
        (Lorenz63Trajectory, {"noise_std": 0.0}),
        (Lorenz63Trajectory, {"observe_every_step": 200}),
        (Lorenz96Trajectory, {"observed_sites": 41}),
        (Lorenz96Trajectory, {"steps": 1}),
    ],
)
def test_bad_options_are_errors(cls, options):
    with pytest.raises(ConfigError, match="expected"):
        cls(**options)
