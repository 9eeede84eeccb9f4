"""The map of the analysis encoder: a bijection for states of every size and shape, with its Jacobian, differentiable in the observation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import LeastSquares
from vardax_flax.encoders import AnalysisEncoderConfig, MLPEncoderConfig

TIMES = 5


class Bent(LeastSquares):
    """A state of any shape, seen five times through a bent model, with a noise scale of its own in every place."""

    kind = "bent"

    def __init__(self, shape):
        self.shape = shape

    def sample(self, key):
        k = jax.random.split(key, 5)
        background = jax.random.normal(k[0], self.shape)
        x = background + jax.random.normal(k[1], self.shape)
        scale = jnp.exp(0.3 * jax.random.normal(k[2], (TIMES, x.size)))
        y = self.predict(x) + scale * jax.random.normal(k[3], scale.shape)
        mask = jax.random.bernoulli(k[4], 0.7, y.shape).astype(y.dtype)
        return Batch(input=jnp.where(mask == 1, y, jnp.nan), mask=mask, target=x, background=background, noise_scale=scale)

    def predict(self, x):
        flat = x.ravel()
        return jnp.sin(1 + jnp.arange(1.0 * TIMES))[:, None] * (flat + 0.05 * jnp.sin(jnp.roll(flat, 1)))

    def residual(self, x, element):
        misfit = element.mask * (self.predict(x) - element.input) / element.noise_scale
        return jnp.concatenate([(x - element.background).ravel(), misfit.ravel()])

    def log_prior(self, x, element):
        return -0.5 * jnp.square(x - element.background).sum()

    def log_likelihood(self, x, element):
        return -0.5 * jnp.square(self.residual(x, element)[x.size :]).sum()


SLOW = ((1,), (2, 2), (12,))  # compiling the map of four components takes minutes
shapes = pytest.mark.parametrize("shape", [(2,), *(pytest.param(shape, marks=pytest.mark.slow) for shape in SLOW)], ids=str)


def build(shape, n, **changes):
    simulator = Bent(shape)
    batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(0), n))._replace(**changes)
    encoder = AnalysisEncoderConfig(inner=MLPEncoderConfig(features=4, width=8, depth=1)).build(simulator.spec, nnx.Rngs(0), simulator)
    encoder.calibrate(batch)
    return encoder, batch


def leading(batch, *lead):
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), batch)


@pytest.mark.slow
@shapes
@pytest.mark.parametrize("draws", [(), (7,)], ids=["states", "draws"])
def test_it_is_a_bijection_over_any_leading_axes(shape, draws, x64):
    encoder, batch = build(shape, 6)
    z = jax.random.normal(jax.random.key(1), (6, *draws, int(np.prod(shape))))
    forth = jax.jit(lambda z, b: encoder.to_x(z, b, encoder.locate(b).frame))
    back = jax.jit(lambda x, b: encoder.to_z(x, b, encoder.locate(b).frame))
    x = forth(z, batch)
    assert x.shape == (6, *draws, *shape)
    again, log_det = back(x, batch)
    np.testing.assert_allclose(again, z, atol=1e-7)
    two = leading(batch, 2, 3)
    np.testing.assert_allclose(forth(z.reshape(2, 3, *z.shape[1:]), two).reshape(x.shape), x, atol=1e-9)
    np.testing.assert_allclose(back(x.reshape(2, 3, *x.shape[1:]), two)[1].reshape(log_det.shape), log_det, atol=1e-9)
    one = jax.tree.map(lambda leaf: leaf[0], batch)
    np.testing.assert_allclose(forth(z[0], one), x[0], atol=1e-9)
    jacobian = jax.jacfwd(lambda flat: back(flat.reshape(shape), one)[0])(x[0].reshape(-1, *shape)[0].ravel())
    np.testing.assert_allclose(log_det.reshape(6, -1)[0, 0], np.linalg.slogdet(jacobian)[1], atol=1e-7)


@shapes
def test_a_window_without_observations_has_the_prior_as_its_normal(shape, x64):
    encoder, batch = build(shape, 4)
    bare = batch._replace(mask=jnp.zeros_like(batch.mask))

    @jax.jit
    def straighten(bare):
        frame = encoder.locate(bare).frame
        return frame.x, *encoder.to_z(bare.target, bare, frame)

    mode, z, log_det = straighten(bare)
    np.testing.assert_allclose(mode, bare.background.reshape(4, -1), atol=1e-12)
    np.testing.assert_allclose(jnp.square(z).sum(-1), jnp.square((bare.target - bare.background).reshape(4, -1)).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)


@pytest.mark.slow
@shapes
def test_context_and_coordinates_have_derivatives_in_the_observation(shape, x64):
    """As finite differences, to what the iterations converge to, the mode and its spread included; hidden values have none."""
    encoder, batch = build(shape, 2)
    direction = jax.random.normal(jax.random.key(3), batch.input.shape)

    def summary(y):
        given = batch._replace(input=y)
        context, frame = encoder.locate(given)
        z, log_det = encoder.to_z(batch.target, given, frame)
        return jnp.stack([context.sum(), jnp.sin(z).sum(), log_det.sum(), frame.x.sum()])

    observed, h = jnp.where(batch.mask == 1, batch.input, 0), 1e-4
    f = jax.jit(summary)
    expected = (f(observed + h * direction) - f(observed - h * direction)) / (2 * h)
    _, forward = jax.jit(lambda y: jax.jvp(summary, (y,), (direction,)))(observed)
    np.testing.assert_allclose(forward, expected, rtol=1e-3, atol=1e-5)
    gradient = jax.jit(jax.jacrev(summary))(observed)
    np.testing.assert_allclose((gradient * direction).sum(axis=(1, 2, 3)), forward, rtol=1e-9)
    assert not jnp.where(batch.mask == 1, 0, gradient).any()
    assert jnp.abs(expected[3]) > 1e-2
