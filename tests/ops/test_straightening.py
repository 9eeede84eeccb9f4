"""The maps that straighten a posterior: bijections, their Jacobians, exact where there is a closed form; and on Lorenz systems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import mostly_slow
from vardax_flax.ops.cubic import CUBIC
from vardax_flax.ops.frames import LINEAR, Frame
from vardax_flax.ops.gauss_newton import Laplace, gauss_newton
from vardax_flax.ops.rosenblatt import WALK
from vardax_flax.simulators import Lorenz63, Lorenz96

RNG = np.random.default_rng(0)
MATRICES = {3: RNG.standard_normal((7, 3)) * np.array([1.0, 3.0, 10.0]), 12: RNG.standard_normal((20, 12))}
QUADRATIC = RNG.standard_normal((4, 4, 4))
MAPS = {"linear": LINEAR, "walk": WALK, "cubic": CUBIC}


def linear(x):
    return MATRICES[x.size] @ x - 1


def sheet(x):
    """Density N(0, I) in (x₁, 100 (x₂ − x₁²∕4)): a thin, bent sheet."""
    return jnp.stack([x[0], 100 * (x[1] - x[0] ** 2 / 4)])


def bent(x, size=0.1):
    """Four numbers, each bent by the others but not skewed by itself, and a misfit that is not zero at the mode and changes the Hessian."""
    quadratic = QUADRATIC * (1 - jnp.eye(4)[:, :, None] * jnp.eye(4)[:, None, :])
    scaled = x * jnp.array([1.0, 2.0, 3.0, 4.0])
    misfit = 1 + size * jnp.einsum("jk,j,k->", QUADRATIC[0] + QUADRATIC[0].T, scaled, scaled)
    return jnp.append(scaled + size * jnp.einsum("ijk,j,k->i", quadratic, scaled, scaled), misfit)


def frame_of(map, residual, dim):
    def build(x):
        return map.frame(residual, gauss_newton(lambda x, _: residual(x), x, jnp.arange(12)))

    return jax.jit(build)(jnp.full((dim,), 0.01))


CASES = [(map, residual, dim) for map in MAPS.values() for residual, dim in ((linear, 3), (linear, 12), (sheet, 2), (bent, 4))]


@mostly_slow(
    ("map", "residual", "dim"),
    [case for case in CASES if case[0] is not WALK or case[2] <= 8],
    [(map, sheet, 2) for map in MAPS.values()],
)
def test_it_is_a_bijection_with_the_stated_jacobian(map, residual, dim, x64):
    frame = frame_of(map, residual, dim)
    z = RNG.standard_normal((50, dim))
    x = jax.jit(jax.vmap(lambda z: map.from_normal(residual, frame, z)))(z)
    back, log_det = jax.jit(jax.vmap(lambda x: map.to_normal(residual, frame, x)))(x)
    np.testing.assert_allclose(back, z, atol=1e-8)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda x: map.to_normal(residual, frame, x)[0])))(x)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-8)


@mostly_slow(("map", "dim"), [(LINEAR, 3), (WALK, 3), (CUBIC, 3), (LINEAR, 12), (CUBIC, 12)], quick=3)
def test_it_is_exact_for_a_linear_residual(map, dim, x64):
    """z is standard normal: ‖z‖² is twice the cost above its minimum, and the determinant that of the precision's factor."""
    frame = frame_of(map, linear, dim)
    x = frame.x + RNG.standard_normal((50, dim))
    z, log_det = jax.jit(jax.vmap(lambda x: map.to_normal(linear, frame, x)))(x)
    cost = jax.vmap(lambda x: jnp.square(linear(x)).sum())
    np.testing.assert_allclose(jnp.square(z).sum(-1), cost(x) - cost(frame.x[None]), rtol=1e-8)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(MATRICES[dim].T @ MATRICES[dim])[1] / 2, rtol=1e-8)
    np.testing.assert_allclose(frame.sd, np.sqrt(np.diagonal(np.linalg.inv(MATRICES[dim].T @ MATRICES[dim]))), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("map", "order"), [(LINEAR, 1), (CUBIC, 2)], ids=["linear", "cubic"])
def test_the_density_is_right_to_the_order_claimed(map, order, x64):
    """log q + ½‖r‖² is a constant up to terms of second order in how bent the model is; for the Laplace approximation, of first."""

    def misfit(size):
        frame = frame_of(map, lambda x: bent(x, size), 4)
        x = RNG_POINTS / np.array([1.0, 2.0, 3.0, 4.0])
        z, log_det = jax.jit(jax.vmap(lambda x: map.to_normal(lambda x: bent(x, size), frame, x)))(x)
        rest = log_det - 0.5 * jnp.square(z).sum(-1) + 0.5 * jnp.square(jax.vmap(lambda x: bent(x, size))(x)).sum(-1)
        return float(rest.std())

    assert misfit(1e-3) / misfit(5e-4) == pytest.approx(2**order, rel=0.02)


@pytest.mark.slow
def test_a_mode_that_is_not_quite_one_is_made_up_for(x64):
    """Half a standard deviation off along every axis: the density is that from the mode itself."""
    frame = CUBIC.frame(linear, Laplace(jnp.asarray(MODE + 0.5 * SD), jnp.asarray(FACTOR)))
    x = MODE + SD * RNG_POINTS[:, :3]
    z, _ = jax.vmap(lambda x: CUBIC.to_normal(linear, frame, x))(x)
    np.testing.assert_allclose(jnp.square(z).sum(-1), np.square((x - MODE) @ FACTOR.T).sum(-1), rtol=1e-8)


@mostly_slow("map", [CUBIC, LINEAR], ids=["cubic", "linear"])
def test_accurate_observations_of_some_components_do_not_drown_the_others(map):
    """In single precision: half of twelve numbers known to a thousandth, a condition number of 10⁷."""
    sharp = 1e3 * MATRICES[12][:6]
    matrix = np.concatenate([np.eye(12), sharp])
    frame = frame_of(map, lambda x: jnp.asarray(matrix, jnp.float32) @ x, 12)
    columns = np.asarray(frame.columns, np.float64)
    whitened = np.linalg.eigvalsh(columns.T @ matrix.T @ matrix @ columns)
    np.testing.assert_allclose(whitened, 1, atol=0.02)
    np.testing.assert_allclose(frame.log_det, np.linalg.slogdet(matrix.T @ matrix)[1] / 2, atol=1e-3)


FACTOR = np.linalg.cholesky(MATRICES[3].T @ MATRICES[3]).T
MODE = np.linalg.lstsq(MATRICES[3], np.ones(7))[0]
SD = 0.5 / np.sqrt(np.square(FACTOR).sum(axis=0))
RNG_POINTS = np.random.default_rng(1).standard_normal((200, 4))


def test_the_walk_follows_a_bent_sheet(x64):
    """A Gaussian fitted at the mode is off by dozens of standard deviations along the sheet; the map is not."""
    frame = frame_of(WALK, sheet, 2)
    truth = RNG.standard_normal((400, 2))
    x = np.stack([truth[:, 0], truth[:, 1] / 100 + truth[:, 0] ** 2 / 4], axis=-1)
    laplace = (x - frame.x) @ frame.rows.T
    z, _ = jax.jit(jax.vmap(lambda x: WALK.to_normal(sheet, frame, x)))(x)
    assert abs(laplace).max() > 30
    assert abs(z).max() < 6


def test_a_model_that_overflows_costs_no_number_on_the_walk():
    def residual(x):
        return jnp.concatenate([x, jnp.exp(jnp.exp(20 * x[:1])) - jnp.e])

    frame = Frame(jnp.zeros(2), jnp.diag(jnp.array([1.0, 0.05])), jnp.diag(jnp.array([1.0, 20.0])), jnp.log(20.0))
    z = jnp.stack([jnp.linspace(-5, 5, 11), jnp.ones(11)], axis=-1)

    @jax.jit
    @jax.vmap
    def there_and_back(z):
        x = WALK.from_normal(residual, frame, z)
        back = jax.jacrev(lambda z: WALK.from_normal(residual, frame, z))(z)
        forth = jax.jacfwd(lambda x: WALK.to_normal(residual, frame, x)[0])(x)
        return x, *WALK.to_normal(residual, frame, x), (back, forth)

    x, back, log_det, slopes = there_and_back(z)
    assert np.isfinite(x).all() and np.isfinite(log_det).all() and all(np.isfinite(slope).all() for slope in slopes)
    np.testing.assert_allclose(back, z, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_derivatives_that_overflow_leave_the_laplace_approximation():
    def residual(x):
        return jnp.concatenate([x, jnp.where(x > 0, x, 0) ** 1.5])  # the second derivative at zero is infinite

    frame = CUBIC.frame(residual, gauss_newton(lambda x, _: residual(x), jnp.zeros(3), jnp.arange(1)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(frame))
    np.testing.assert_allclose(frame.sd, 1, rtol=1e-5)


@pytest.mark.slow
def test_lorenz96_posteriors_are_nearly_normal_to_third_order():
    """300 fresh windows of 40 sites: ‖z‖² of the truth has the quantiles of χ² with 40 degrees of freedom."""
    simulator = Lorenz96(missing_rate=0.1)

    def one(key):
        element = simulator.sample(key)
        residual = lambda x, mask: simulator.residual(x, element._replace(mask=mask))  # noqa: E731
        laplace = gauss_newton(residual, element.background, jnp.stack([element.mask] * 6))
        frame = CUBIC.frame(lambda x: residual(x, element.mask), laplace)
        z, log_det = CUBIC.to_normal(residual, frame, element.target)
        u = frame.rows @ (element.target - frame.x)
        gain = log_det - frame.log_det - 0.5 * (jnp.square(z).sum() - jnp.square(u).sum())
        return jnp.square(z).sum(), gain

    size, gain = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), 300))
    np.testing.assert_allclose(np.quantile(size, [0.05, 0.5, 0.95]), [26.5, 39.3, 55.8], rtol=0.07)
    assert gain.mean() > 0.4  # nats over the Laplace approximation


@pytest.mark.slow
def test_lorenz63_posteriors_are_nearly_normal_in_it():
    """4000 fresh windows: the truth in its coordinates is as spread as a normal, which it is not in those of a Laplace approximation."""
    simulator = Lorenz63()
    shares = jnp.array([2, 4, 6, 8, 10, 10])

    def one(key):
        element = simulator.sample(key)

        def residual(x, n):
            return simulator.residual(x, element._replace(mask=jnp.where(jnp.arange(10)[:, None] < n, element.mask, 0)))

        frame = WALK.frame(lambda x: residual(x, 10), gauss_newton(residual, element.background, shares))
        laplace = frame.rows @ (element.target - frame.x)
        return WALK.to_normal(lambda x: residual(x, 10), frame, element.target)[0], laplace

    z, laplace = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    outside = lambda u: (abs(u).max(axis=-1) > 4).mean()  # noqa: E731
    assert outside(laplace) > 0.05
    assert outside(z) < 0.003  # 2e-4 for a normal
    central = np.quantile(abs(z), [0.5, 0.9, 0.99], axis=0)
    np.testing.assert_allclose(central, np.broadcast_to([[0.674], [1.645], [2.576]], (3, 3)), rtol=0.08)
