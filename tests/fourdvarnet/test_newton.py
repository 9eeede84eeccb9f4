"""Gauss–Newton steps of a solver: they finish what the descent began, harm nothing, and come before it where a configuration says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError, from_dict
from vardax_flax.fourdvarnet import ConvLSTMConfig, DynamicalPriorConfig, FourDVarNetConfig, NewtonConfig
from vardax_flax.simulators import Lorenz63Trajectory, Lorenz96Trajectory

SMALL63 = Lorenz63Trajectory(steps=80)
SMALL96 = Lorenz96Trajectory(steps=24, n_sites=12, observed_sites=8)


def draw(simulator, n):
    return jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(3), n))


def solver(simulator, **options):
    axes = "time" if simulator is SMALL63 else "space-time"
    config = FourDVarNetConfig(
        prior=DynamicalPriorConfig(), modulator=ConvLSTMConfig(hidden=4), axes=axes, periodic=True, n_solver_steps=2,
        newton=NewtonConfig(**options),
    )  # fmt: skip
    model = config.build(simulator, nnx.Rngs(0))
    model.calibrate(draw(simulator, 256))
    return model


def error(x, batch):
    return float(jnp.square(x - batch.target).mean())


@mostly_slow(("simulator", "start"), [(SMALL63, 0.1), (SMALL96, 0.5)], quick=2)
def test_an_untrained_solver_with_newton_is_a_smoother(simulator, start):
    batch = draw(simulator, 16)
    model = solver(simulator, steps=6, model_std=(start, 0.03))
    guess = model.scale.inverse(model.first_guess(batch))
    np.testing.assert_allclose(model.solve(batch).state, guess, rtol=1e-4, atol=1e-4)  # nothing is learned yet
    assert error(model(batch), batch) < 0.5 * error(guess, batch)
    few = model(jax.tree.map(lambda leaf: leaf[3:5], batch))
    np.testing.assert_allclose(few, model(batch)[3:5], rtol=1e-2, atol=1e-2)  # Gauss–Newton amplifies rounding
    first = solver(simulator, steps=6, model_std=(start, 0.03), place="first")
    np.testing.assert_allclose(first(batch), model(batch), rtol=1e-2, atol=1e-2)


def test_a_window_that_newton_harms_keeps_what_it_had():
    batch = draw(SMALL63, 4)
    model = solver(SMALL63, steps=2, model_std=(0.1, 0.03))
    lost = batch.target.at[1].set(1e6)  # from where the model overflows
    found = model.newton(lost, batch)
    np.testing.assert_array_equal(found[1], lost[1])
    assert bool(jnp.isfinite(found).all()) and error(found[2:], jax.tree.map(lambda leaf: leaf[2:], batch)) < 1


def test_newton_first_is_taken_as_given():
    batch = draw(SMALL63, 4)
    model = solver(SMALL63, steps=2, place="first")
    assert np.array_equal(jax.jacrev(lambda y: model.first_guess(batch._replace(input=y)).sum())(batch.input), jnp.zeros_like(batch.input))
    last = solver(SMALL63, steps=2, place="last")
    np.testing.assert_allclose(last.loss(batch, jax.random.key(0))[0], _error_of(last, batch), rtol=1e-5)  # without those that come after
    hidden = batch._replace(input=jnp.where(batch.mask > 0, batch.input, jnp.nan))
    found = jax.jit(model.newton)(batch.target, hidden)
    np.testing.assert_allclose(found, model.newton(batch.target, batch), rtol=1e-3, atol=1e-3)


def _error_of(model, batch):
    return jnp.square(model.scale(model.solve(batch).state) - model.scale(batch.target)).mean()


def test_what_the_user_passes_is_checked():
    model = solver(SMALL63, steps=1)
    batch = draw(SMALL63, 2)
    with pytest.raises(ValueError, match="expected finite values in `input`"):
        model(batch._replace(input=batch.input.at[0, 10, 0].set(jnp.nan), target=None))
    with pytest.raises(ValueError, match=r"expected `input` of shape \(\*batch, any, 3\)"):
        model(batch._replace(input=batch.input[..., :2], mask=batch.mask[..., :2]))
    with pytest.raises(ValueError, match="expected `mask` of shape"):
        model(batch._replace(mask=batch.mask[:, :-1]))
    np.testing.assert_allclose(model(jax.tree.map(lambda leaf: leaf[0], batch)), model(batch)[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="middle"):
        from_dict(NewtonConfig, {"place": "middle"})
