"""Assimilation in a latent space: with the identity it is that of states, with a linear decoder that of a reduced basis."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.assimilation.cases import lorenz96
from vardax_flax.assimilation import Cycle, GaussNewton, IncrementalFourDVar, LatentFourDVar, StrongFourDVar, eof_basis
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.simulators import Lorenz96

NEWTON = GaussNewton(inner=100, inner_tolerance=1e-8)


def window():
    rng = np.random.default_rng(0)
    background = Lorenz96().attractor()[0]
    return Batch(input=background + rng.normal(size=(3, 40)), mask=rng.random((3, 40)) < 0.5, background=background)


@pytest.mark.slow
def test_with_the_identity_it_is_assimilation_of_states(x64):
    options = {"background_cov": 0.5, "obs_cov": 1.0, "minimiser": NEWTON}
    latent = LatentFourDVar((40,), lorenz96, decoder=lambda z: z, latent_shape=(40,), **options).posterior(window())
    plain = StrongFourDVar((40,), lorenz96, **options).posterior(window())
    np.testing.assert_allclose(latent.mean, plain.mean, atol=1e-5)
    np.testing.assert_allclose(latent.std, plain.std, rtol=1e-5)
    np.testing.assert_allclose(latent.log_evidence, plain.log_evidence, rtol=1e-8)


@pytest.mark.slow
def test_with_a_linear_decoder_it_is_assimilation_in_a_basis(x64):
    basis, batch = eof_basis(Lorenz96().attractor()[:2000], 8), window()
    reduced = IncrementalFourDVar((40,), lorenz96, background_cov=0.5, obs_cov=1.0, basis=basis, inner=100).posterior(batch)
    columns, encoder = jnp.asarray(basis), lambda x: jnp.asarray(basis).T @ (x - batch.background)
    decoder = lambda z: batch.background + columns @ z  # noqa: E731
    method = LatentFourDVar((40,), lorenz96, decoder=decoder, latent_shape=(8,), background_cov=0.5, obs_cov=1.0, minimiser=NEWTON)
    latent = method.posterior(batch._replace(background=np.zeros(8)))
    np.testing.assert_allclose(latent.mean, reduced.mean, atol=1e-5)
    np.testing.assert_allclose(latent.std, reduced.std, rtol=1e-5)
    increment = latent.mean - batch.background
    np.testing.assert_allclose(basis @ (basis.T @ increment), increment, atol=1e-9)
    coded = LatentFourDVar(
        (40,), lorenz96, decoder=decoder, encoder=encoder, latent_shape=(8,), background_cov=0.5, obs_cov=1.0, minimiser=NEWTON
    )
    np.testing.assert_allclose(coded(batch), latent.mean, atol=1e-6)


def test_a_curved_decoder_keeps_the_analysis_on_its_curve_and_cycles(x64):
    """A circle in the plane that turns by a known angle: observed with noise, the states stay on it."""
    turn, rng = 0.4, np.random.default_rng(1)
    step = lambda x: jnp.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ x  # noqa: E731
    method = LatentFourDVar(
        (2,), step, decoder=lambda z: jnp.stack([jnp.cos(z[0]), jnp.sin(z[0])]), encoder=lambda x: jnp.arctan2(x[1:], x[:1]),
        latent_shape=(1,), background_cov=0.1, obs_cov=0.01, observed_at_start=False, minimiser=NEWTON,
    )  # fmt: skip
    angles = turn * np.arange(1, 13)
    truth = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cycled = Cycle(method, step, window=2, shift=2).run(np.array([1.0, 0.0]), truth + 0.1 * rng.normal(size=truth.shape))
    np.testing.assert_allclose(np.linalg.norm(cycled.newest, axis=1), 1.0, atol=1e-9)
    assert np.abs(cycled.newest - truth[1::2])[2:].max() < 0.15


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"decoder": lambda z: z}, "a decoder to"),
        ({"decoder": lambda z: jnp.tile(z, 3), "encoder": lambda x: x}, "an encoder to"),
        ({"decoder": lambda z: jnp.tile(z, 3), "background_cov": np.eye(3)}, "size 1"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(options, says):
    with pytest.raises(ConfigError, match=f"expected .*{says}.*got .*; do "):
        LatentFourDVar((3,), lambda x: x, latent_shape=(1,), **{"background_cov": 1.0, "obs_cov": 1.0, **options})
