"""The map that straightens a posterior: a bijection, its Jacobian, exact where there is a closed form; and on Lorenz-63."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops.gauss_newton import gauss_newton
from vardax_flax.ops.rosenblatt import Frame, from_normal, to_normal, whitening_frame
from vardax_flax.simulators import Lorenz63

RNG = np.random.default_rng(0)
MATRICES = {3: RNG.standard_normal((7, 3)) * np.array([1.0, 3.0, 10.0]), 12: RNG.standard_normal((20, 12))}  # walked, and too large to


def linear(x):
    return MATRICES[x.size] @ x - 1


def sheet(x):
    """Density N(0, I) in (x₁, 100 (x₂ − x₁²∕4)): a thin, bent sheet."""
    return jnp.stack([x[0], 100 * (x[1] - x[0] ** 2 / 4)])


def frame_of(residual, dim):
    return jax.jit(lambda x: whitening_frame(gauss_newton(lambda x, _: residual(x), x, jnp.arange(12))))(jnp.full((dim,), 0.01))


@pytest.mark.parametrize(("residual", "dim"), [(linear, 3), (linear, 12), (sheet, 2)])
def test_it_is_a_bijection_with_the_stated_jacobian(residual, dim, x64):
    frame = frame_of(residual, dim)
    z = RNG.standard_normal((50, dim))
    x = jax.jit(jax.vmap(lambda z: from_normal(residual, frame, z)))(z)
    back, log_det = jax.jit(jax.vmap(lambda x: to_normal(residual, frame, x)))(x)
    np.testing.assert_allclose(back, z, atol=1e-8)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda x: to_normal(residual, frame, x)[0])))(x)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-8)


@pytest.mark.parametrize("dim", [3, 12])
def test_it_is_exact_for_a_linear_residual(dim, x64):
    """z is standard normal: ‖z‖² is twice the cost above its minimum, and the determinant that of the precision's factor."""
    frame = frame_of(linear, dim)
    x = frame.x + RNG.standard_normal((50, dim))
    z, log_det = jax.jit(jax.vmap(lambda x: to_normal(linear, frame, x)))(x)
    cost = jax.vmap(lambda x: jnp.square(linear(x)).sum())
    np.testing.assert_allclose(jnp.square(z).sum(-1), cost(x) - cost(frame.x[None]), rtol=1e-9)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(MATRICES[dim].T @ MATRICES[dim])[1] / 2, rtol=1e-9)
    np.testing.assert_allclose(frame.sd, np.sqrt(np.diagonal(np.linalg.inv(MATRICES[dim].T @ MATRICES[dim]))), rtol=1e-9)


def test_it_follows_a_bent_sheet(x64):
    """A Gaussian fitted at the mode is off by dozens of standard deviations along the sheet; the map is not."""
    frame = frame_of(sheet, 2)
    truth = RNG.standard_normal((400, 2))
    x = np.stack([truth[:, 0], truth[:, 1] / 100 + truth[:, 0] ** 2 / 4], axis=-1)
    laplace = (x - frame.x) @ frame.rows.T
    z, _ = jax.jit(jax.vmap(lambda x: to_normal(sheet, frame, x)))(x)
    assert abs(laplace).max() > 30
    assert abs(z).max() < 6


def test_a_model_that_overflows_costs_no_number():
    def residual(x):
        return jnp.concatenate([x, jnp.exp(jnp.exp(20 * x[:1])) - jnp.e])

    frame = Frame(jnp.zeros(2), jnp.diag(jnp.array([1.0, 0.05])), jnp.diag(jnp.array([1.0, 20.0])), jnp.log(20.0))
    for z in np.linspace(-5, 5, 11):
        x = from_normal(residual, frame, jnp.array([z, 1.0]))
        back, log_det = to_normal(residual, frame, x)
        assert np.isfinite(x).all() and np.isfinite(log_det)
        np.testing.assert_allclose(back, [z, 1.0], rtol=1e-3, atol=1e-3)
        assert np.isfinite(jax.jacrev(lambda z: from_normal(residual, frame, z))(jnp.array([z, 1.0]))).all()
        assert np.isfinite(jax.jacfwd(lambda x: to_normal(residual, frame, x)[0])(x)).all()


@pytest.mark.slow
def test_lorenz63_posteriors_are_nearly_normal_in_it():
    """4000 fresh windows: the truth in its coordinates is as spread as a normal, which it is not in those of a Laplace approximation."""
    simulator = Lorenz63()
    shares = jnp.array([2, 4, 6, 8, 10, 10])

    def one(key):
        element = simulator.sample(key)

        def residual(x, n):
            return simulator.residual(x, element._replace(mask=jnp.where(jnp.arange(10)[:, None] < n, element.mask, 0)))

        frame = whitening_frame(gauss_newton(residual, element.background, shares))
        laplace = frame.rows @ (element.target - frame.x)
        return to_normal(lambda x: residual(x, 10), frame, element.target)[0], laplace

    z, laplace = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    outside = lambda u: (abs(u).max(axis=-1) > 4).mean()  # noqa: E731
    assert outside(laplace) > 0.05
    assert outside(z) < 0.003  # 2e-4 for a normal
    central = np.quantile(abs(z), [0.5, 0.9, 0.99], axis=0)
    np.testing.assert_allclose(central, np.broadcast_to([[0.674], [1.645], [2.576]], (3, 3)), rtol=0.08)
