"""A bounded state in unconstrained coordinates: no draw outside, a density that integrates to one in each space, and their consistency."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.perturb import perturb
from vardax_flax.core.config import ConfigError
from vardax_flax.encoders import AnalysisEncoderConfig, IdentityEncoderConfig
from vardax_flax.heads import RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig, UnconstrainedEncoder, coordinates, from_unconstrained, to_unconstrained
from vardax_flax.simulators import LogNormal, Lorenz63, Product, Uniform, from_functions
from vardax_flax.streams import SeedStream
from vardax_flax.training import FitConfig, OptimConfig, fit

KEY = jax.random.key(3)
LINE = Uniform((-1.0,), (2.0,))
PLANE = Product((Uniform((0.5,), (0.75,)), LogNormal((1.0,), (0.3,))))
HEAD = RegressionHeadConfig(width=8)


def identity(x):
    return x


@functools.cache
def model(prior, double=False):
    """Neither trained nor at its start: it presses against the edges. One for each precision, which `double` tells apart."""
    simulator = from_functions(prior, identity, noise=0.3)
    made = perturb(AmortizedConfig(IdentityEncoderConfig(), HEAD, space="unconstrained").build(simulator, nnx.Rngs(0)), 0.1)
    made.calibrate(jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(1), 512)))
    return simulator, made


def observed(simulator, n=2):
    return jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(2), n))._replace(target=None)


@pytest.mark.slow
def test_every_draw_and_the_mode_are_inside():
    simulator, made = model(PLANE)
    batch = observed(simulator)
    draws = made.sample(batch, KEY, 5000)
    assert draws.shape == (2, 5000, 2)
    assert np.isfinite(PLANE.log_prob(draws)).all() and np.isfinite(PLANE.log_prob(made(batch))).all()
    assert np.isfinite(made.log_prob(draws, batch)).all()
    simulator, made = model(LINE)
    wild = np.asarray(perturb(nnx.clone(made), 3.0).sample(observed(simulator), KEY, 5000))  # weights that throw draws against the edges
    assert ((wild >= -1) & (wild <= 2)).all() and ((wild == -1) | (wild == 2)).any()


@pytest.mark.slow
@pytest.mark.parametrize("space", ["physical", "cube", "unconstrained"])
def test_the_density_integrates_to_one_over_the_support(space, x64):
    """Midpoint densities times the widths of cells, whose corners are a grid in u."""
    simulator, made = model(PLANE, double=True)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), observed(simulator))
    edges = jnp.linspace(-40.0, 40.0, 801)[:, None] * jnp.ones(2)
    middle = 0.5 * (edges[1:] + edges[:-1])
    grid = jnp.stack(jnp.meshgrid(middle[:, 0], middle[:, 1], indexing="ij"), axis=-1).reshape(-1, 2)
    x = from_unconstrained(PLANE, grid)
    log_q = np.asarray(made.log_prob(jnp.broadcast_to(x, (2, *x.shape)), batch))
    log_du_dx = np.asarray(to_unconstrained(PLANE, x)[1])
    if space == "unconstrained":
        log_q, corners = log_q - log_du_dx, edges
    elif space == "cube":
        corners = from_unconstrained(coordinates(PLANE, "cube"), edges)
        c = from_unconstrained(coordinates(PLANE, "cube"), grid)
        log_q = log_q - log_du_dx + np.asarray(to_unconstrained(coordinates(PLANE, "cube"), c)[1])
    else:
        corners = from_unconstrained(PLANE, edges)
    widths = np.diff(np.asarray(corners), axis=0)
    area = (widths[:, :1] * widths[:, 1]).reshape(-1)
    np.testing.assert_allclose((np.exp(log_q) * area).sum(-1), 1, atol=2e-3)


def test_the_density_is_that_of_the_transform(x64):
    """log q(x) = log q(u) + log |du/dx|, the Jacobian by differentiation of the inverse."""
    simulator, made = model(PLANE, double=True)
    batch = observed(simulator, 1)
    x = jnp.array([[0.6, 1.2]])
    encoder = made.encoder
    assert isinstance(encoder, UnconstrainedEncoder)
    z, log_det = jax.jit(lambda x: encoder.to_z(x, batch, None))(x)
    jacobian = jax.jit(jax.jacfwd(lambda z: encoder.to_x(z, batch, None)[0]))(z)[:, 0]
    np.testing.assert_allclose(log_det[0], -np.linalg.slogdet(jacobian)[1], rtol=1e-9)
    np.testing.assert_allclose(made.log_prob(x, batch), jax.jit(lambda z: made.head.log_prob(z, encoder(batch)))(z) + log_det, rtol=1e-6)


def test_outside_there_is_no_density_and_no_gradient():
    simulator, made = model(LINE)
    batch = observed(simulator, 1)
    outside, told = jnp.array([[-1.01], [2.01]]), jax.jit(made.loss)
    for x in outside:
        assert made.log_prob(x[None], batch) == -np.inf
    for edge in (-1.0, 2.0):
        assert np.isfinite(made.log_prob(jnp.array([[edge]]), batch))
        loss, _ = told(batch._replace(target=jnp.array([[edge]])), KEY)
        assert np.isfinite(loss)


@pytest.mark.slow
def test_a_flat_posterior_stays_within_its_box_where_the_physical_space_leaks():
    """x ~ U(−1, 2) seen through noise of 100: the posterior is the prior, of entropy log 3 = 1.099; the best Gaussian has 1.275, and the
    best Gaussian of u 1.113."""
    simulator = from_functions(LINE, identity, noise=100.0)
    config = FitConfig(steps=100, eval_every=100, held_out=512, optim=OptimConfig(learning_rate=5e-3, warmup_steps=10))
    results = {}
    for space in ("physical", "unconstrained"):
        made = AmortizedConfig(IdentityEncoderConfig(), HEAD, space=space).build(simulator, nnx.Rngs(0))
        result = fit(made, SeedStream(simulator, 128), config, progress=False)
        draws = np.asarray(made.sample(observed(simulator), KEY, 2000))
        results[space] = float(np.mean((draws < -1) | (draws > 2))), result.best_loss
    assert results["unconstrained"][0] == 0 and results["physical"][0] > 0.002
    assert results["unconstrained"][1] < results["physical"][1] - 0.1


def test_what_cannot_be_modelled_there_is_refused():
    with pytest.raises(ConfigError, match="expected a simulator with a `MarginalPrior`, got Lorenz63; do "):
        AmortizedConfig(space="unconstrained").build(Lorenz63(), nnx.Rngs(0))
    encoder = AnalysisEncoderConfig().build(Lorenz63().spec, nnx.Rngs(0), Lorenz63())
    with pytest.raises(ConfigError, match="expected an encoder without coordinates of its own, got AnalysisEncoder; do "):
        UnconstrainedEncoder(encoder, LINE)
