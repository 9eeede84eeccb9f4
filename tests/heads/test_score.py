"""The score head next to the Gaussian it starts from, and on a posterior that is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.perturb import noise, perturb
from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError
from vardax_flax.diffusion import EDM, PROCESSES, SAMPLERS, log_prob
from vardax_flax.heads import ScoreHeadConfig
from vardax_flax.heads.sampling import ascend

C = 3
SMALL = functools.partial(ScoreHeadConfig, width=8, depth=2)


def build(config, dim=2):
    """A head whose Gaussian is no standard one, and whose velocity is still 0."""
    head = config.build(dim, C, nnx.Rngs(0))
    head.affine = perturb(head.affine, 0.3)
    return head


@mostly_slow("sampler", sorted(SAMPLERS), ["adams"])
def test_an_untrained_head_draws_from_its_gaussian(sampler):
    exact = ("adams", "heun", "stochastic_heun", "euler_maruyama", "ode")  # where the velocity is 0, whatever the steps
    head, context = build(SMALL(sampler=sampler, steps=5 if sampler in exact else 100)), noise(2, C)
    x = jax.jit(head.sample, static_argnums=2)(context, jax.random.key(0), 5000)
    z = np.asarray(head.affine.forward(x, context[:, None])[0])
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=0.07)
    for one in z:
        np.testing.assert_allclose(np.cov(one.T), np.eye(2), atol=0.1)


@pytest.mark.slow
def test_the_density_of_an_untrained_head_is_that_of_its_gaussian():
    for dim in (2, 20):  # with the exact trace and with the estimated one, which is exact where there is nothing to estimate
        head, context, x = build(SMALL(), dim), noise(4, C), noise(4, dim, seed=2)
        z, log_det = head.affine.forward(x, context)
        expected = log_det - 0.5 * (jnp.square(z) + np.log(2 * np.pi)).sum(axis=-1)
        value, error = jax.jit(head.log_prob_with_error)(x, context, jax.random.key(0))
        np.testing.assert_allclose(value, expected, atol=1e-3, rtol=1e-5)
        np.testing.assert_allclose(error, 0, atol=1e-6)


@mostly_slow(("process", "weighting"), [(EDM(), "likelihood"), *((cls(), "unit") for cls in PROCESSES.values())], ids=str)
def test_the_loss_is_least_for_the_velocity_of_the_data(process, weighting, x64):
    """Standard normal data: v = 0 leaves E‖cos φ ε − sin φ z‖² = dim at every level, and any other v more."""
    head = SMALL(process=process, weighting=weighting).build(2, C, nnx.Rngs(0))
    x, context = noise(20_000, 2), jnp.zeros((20_000, C))
    loss = jax.jit(lambda head: head.loss(x, context, jax.random.key(0)).mean() + head.log_prob_of_gaussian(x, context).mean())
    best = float(loss(head))
    assert np.isfinite(best)
    if weighting == "unit":
        assert abs(best - 2) < 0.05
    other = SMALL(process=process, weighting=weighting).build(2, C, nnx.Rngs(0))
    other.net = perturb(other.net, 0.05)
    assert float(loss(other)) > best + 1e-3


def test_more_levels_of_noise_are_the_same_loss_with_less_noise():
    context, x = noise(64, C), noise(64, 2, seed=2)

    def losses(noises):
        head = build(SMALL(noises=noises))
        head.net = perturb(head.net, 0.3)
        return jax.jit(jax.vmap(lambda key: head.loss(x, context, key)))(jax.random.split(jax.random.key(0), 400))

    one, many = losses(1), losses(8)
    assert one.shape == many.shape == (400, 64)
    error = np.sqrt((np.var(one, axis=0) + np.var(many, axis=0)) / 400)
    assert np.abs((one.mean(axis=0) - many.mean(axis=0)) / error).max() < 4.5
    assert np.var(one, axis=0).mean() > 16 * np.var(many, axis=0).mean()  # 8 for independent levels, but they are spread for each state


@pytest.mark.slow
def test_noise_does_not_train_the_gaussian():
    """Its gradient is that of its own likelihood."""
    head, context, x = build(SMALL()), noise(16, C), noise(16, 2, seed=2)
    head.net = perturb(head.net, 0.3)
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)
    gradient = jax.grad(lambda p: nnx.merge(graphdef, p, rest).loss(x, context, jax.random.key(0)).mean())(params)
    alone = jax.grad(lambda p: -nnx.merge(graphdef, p, rest).log_prob_of_gaussian(x, context).mean())(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient["affine"], alone["affine"])
    assert any(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient["net"]))


def test_a_state_too_far_for_the_solver_is_nan_and_alone():
    """Where the velocity turns too fast for any number of steps."""
    stiff = lambda u, angle: jnp.where(u > 5, 1e9 * jnp.sin(1e9 * (u + angle)), 0.0)  # noqa: E731
    x = jnp.array([[0.3, 0.2], [9.0, 0.1], [1.0, -1.0]])
    value = jax.jit(jax.vmap(lambda x: log_prob(stiff, x, EDM(), jax.random.key(0)).value))(x)
    assert np.isnan(value[1]) and np.isfinite(value[jnp.array([0, 2])]).all()


def test_a_mode_is_climbed_from_starts_whose_density_is_known():
    starts = jnp.array([[[0.5], [3.0], [-0.2]]])
    density = lambda x: jnp.where(x[..., 0] > 2, jnp.nan, -jnp.square(x[..., 0]))  # noqa: E731
    np.testing.assert_allclose(ascend(density, starts), 0.0, atol=0.05)


@pytest.mark.slow
def test_one_state_meets_many_contexts_without_a_gaussian():
    head = SMALL(affine=False).build(2, C, nnx.Rngs(0))
    assert head.log_prob(noise(2), noise(4, C)).shape == (4,)
    assert head.log_prob(noise(6, 2), noise(4, 1, C)).shape == (4, 6)


@pytest.mark.parametrize("field", [{"steps": 1}, {"width": 0}, {"depth": 0}, {"noises": 0}])
def test_sizes_that_make_no_sense_are_refused(field):
    with pytest.raises(ConfigError, match="expected .*, got .*; do "):
        ScoreHeadConfig(**field)
