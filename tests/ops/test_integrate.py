"""RK4: fourth order, against independent solvers, differentiable, and the layout of a trajectory."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.core.config import ConfigError
from vardax_flax.ops.integrate import rk4, rk4_trajectory


def pendulum(x):
    return jnp.stack([x[..., 1], -jnp.sin(x[..., 0])], axis=-1)


def test_one_step_of_a_linear_system_is_the_taylor_polynomial(x64):
    rate, dt = 1.3, 0.37
    z = -rate * dt
    expected = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    np.testing.assert_allclose(rk4(lambda x: -rate * x, jnp.ones(3), dt), expected, rtol=1e-15)


def test_the_error_falls_with_the_fourth_power_of_the_step(x64):
    x0 = jnp.array([1.0, 0.5])
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: pendulum(x)),
        diffrax.Dopri8(),
        0.0,
        2.0,
        0.01,
        x0,
        stepsize_controller=diffrax.PIDController(rtol=1e-13, atol=1e-13),
    ).ys[-1]
    error = [float(jnp.linalg.norm(rk4_trajectory(pendulum, x0, 2.0 / n, n)[-1] - solution)) for n in (20, 40, 80)]
    orders = np.log2(np.array(error[:-1]) / np.array(error[1:]))
    np.testing.assert_allclose(orders, 4.0, atol=0.15)
    assert error[-1] < 1e-8


def test_numpy_and_jax_states_agree(x64):
    x = np.random.default_rng(0).normal(size=(4, 2))
    stepped = rk4(lambda s: np.stack([s[..., 1], -np.sin(s[..., 0])], axis=-1), x, 0.1)
    assert isinstance(stepped, np.ndarray)
    np.testing.assert_allclose(stepped, rk4(pendulum, jnp.asarray(x), 0.1), rtol=1e-14)


def test_a_trajectory_starts_with_its_initial_state_and_thins_without_changing_it(x64):
    x0 = jnp.array([1.0, 0.0])
    full = rk4_trajectory(pendulum, x0, 0.1, 12)
    assert full.shape == (13, 2)
    np.testing.assert_array_equal(full[0], x0)
    state = x0
    for k in range(1, 13):
        state = rk4(pendulum, state, 0.1)
        np.testing.assert_allclose(full[k], state, rtol=1e-13)
    np.testing.assert_allclose(rk4_trajectory(pendulum, x0, 0.1, 12, save_every=4), full[::4], rtol=1e-13)


def test_zero_steps_return_the_initial_state():
    np.testing.assert_array_equal(rk4_trajectory(pendulum, jnp.ones(2), 0.1, 0), jnp.ones((1, 2)))


def test_it_is_differentiable_in_both_modes(x64):
    x0 = jnp.array([1.0, 0.5])
    end = lambda x: rk4_trajectory(pendulum, x, 0.1, 20, save_every=5)[-1]  # noqa: E731
    difference = np.stack([(end(x0 + h) - end(x0 - h)) / 2e-5 for h in 1e-5 * jnp.eye(2)], axis=-1)
    np.testing.assert_allclose(jax.jacrev(end)(x0), difference, atol=1e-8)
    np.testing.assert_allclose(jax.jacfwd(end)(x0), difference, atol=1e-8)


@pytest.mark.parametrize(("steps", "save_every"), [(10, 3), (-1, 1), (10, 0)])
def test_steps_that_do_not_divide_are_an_error(steps, save_every):
    with pytest.raises(ConfigError, match="expected .*, got .*; do"):
        rk4_trajectory(pendulum, jnp.ones(2), 0.1, steps, save_every)
