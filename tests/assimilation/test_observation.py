"""Operators read what they should, and their tangents and adjoints belong to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.assimilation.cases import lorenz63
from vardax_flax.assimilation import Fusion, Identity, Interpolation, Linear, OptimalInterpolation, linearize
from vardax_flax.core.config import ConfigError

OPERATORS = {
    "identity": (Identity(), (4,)),
    "selection": (Linear(np.eye(4)[[0, 2]]), (4,)),
    "averaging kernel": (Linear(np.random.default_rng(0).normal(size=(2, 4)), [1.0, 2.0]), (4,)),
    "bilinear": (Interpolation([[0.5, 1.25], [2.9, 0.0]]), (4, 5)),
    "bilinear on a ring": (Interpolation([[3.5], [-0.25]], periodic=True), (4,)),
    "fusion": (Fusion([Identity(), Linear(np.ones((1, 4)) / 4)]), (4,)),
    "a function": (lambda x: jnp.sin(x) * x[0], (4,)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_linearised_to_its_value_and_adjoint(x64, name):
    operator, shape = OPERATORS[name]
    tangent = linearize(operator, jnp.ones(shape))
    (w,) = jax.vjp(operator, jnp.ones(shape))[1](tangent.value)
    np.testing.assert_allclose(tangent.pull(tangent.value), w, atol=1e-12)


def test_interpolation_is_exact_on_planes_and_takes_the_border_outside(x64):
    rows, columns = np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij")
    plane = jnp.asarray(2 * rows - 3 * columns + 1)
    points = np.array([[0.25, 3.5], [2.0, 4.0], [-1.0, 0.0], [7.0, 9.0]])
    inside = np.clip(points, 0, [3, 4])
    np.testing.assert_allclose(Interpolation(points)(plane), 2 * inside[:, 0] - 3 * inside[:, 1] + 1, atol=1e-12)


def test_on_a_ring_the_last_cell_is_beside_the_first(x64):
    np.testing.assert_allclose(Interpolation([[3.25], [-0.75]], periodic=True)(jnp.array([8.0, 0.0, 0.0, 4.0])), [5.0, 5.0])


def test_several_instruments_are_read_one_after_the_other():
    np.testing.assert_allclose(Fusion([Identity(), Linear(np.full((1, 3), 1 / 3))])(jnp.array([1.0, 2.0, 6.0])), [1, 2, 6, 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Linear(np.ones(3)), "matrix"),
        (lambda: Linear(np.eye(3), [1.0]), "offset"),
        (lambda: Linear(np.eye(3))(jnp.ones(4)), "3 components"),
        (lambda: Interpolation([0.5]), "points"),
        (lambda: Interpolation([[np.nan]]), "finite"),
        (lambda: Interpolation([[0.5]])(jnp.ones((2, 2))), "1 axes"),
        (lambda: Fusion([]), "at least one"),
        (lambda: OptimalInterpolation((3,), background_cov=1.0, obs_cov=1.0, obs_op=jnp.square), "ThreeDVar"),
    ],
)
def test_an_operator_that_does_not_fit_is_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_optimal_interpolation_takes_an_operator_that_is_linear_with_an_offset():
    OptimalInterpolation((3,), background_cov=1.0, obs_cov=1.0, obs_op=lambda x: 2 * x[:2] + 5)


@pytest.mark.slow
def test_a_step_by_diffrax_is_the_flow_of_its_equation(x64):
    import diffrax

    from vardax_flax.assimilation import DiffraxStep
    from vardax_flax.simulators import Lorenz63

    step = DiffraxStep(Lorenz63().tendency, 0.1, rtol=1e-10, atol=1e-10, adjoint=diffrax.DirectAdjoint())
    x = jnp.array([1.5, -1.5, 25.0])
    np.testing.assert_allclose(step(x), lorenz63(10)(x), rtol=1e-5)
    np.testing.assert_allclose(jax.jacfwd(step)(x), jax.jacfwd(lorenz63(10))(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jax.jacrev(DiffraxStep(Lorenz63().tendency, 0.1, dt=0.01))(x), jax.jacfwd(step)(x), rtol=1e-3, atol=1e-4)
