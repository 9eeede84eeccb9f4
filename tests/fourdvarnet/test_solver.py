"""The learned solver: its gradient by every adjoint, the classical answers it contains, its parts, its sizes and its errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.fourdvarnet.cases import SMALL, observed, perturbed
from tests.slow import mostly_slow
from vardax_flax.adjoints import ADJOINTS, ImplicitAdjoint, KStepAdjoint, RecursiveCheckpointAdjoint
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.fourdvarnet import (
    ConvLSTMConfig,
    DynamicalPriorConfig,
    FourDVarNet,
    FourDVarNet1D,
    FourDVarNet2D,
    FourDVarNetConfig,
    IdentityModulator,
    IdentityPriorConfig,
    Layout,
    SolverLoss,
    one_step_solve_4dvarnet_1d,
    one_step_solve_4dvarnet_2d,
    overlap_add,
    random_patch,
    solve_4dvarnet_1d_fixedpoint,
    solve_4dvarnet_2d_fixedpoint,
)
from vardax_flax.fourdvarnet.model import assemble
from vardax_flax.simulators import Lorenz63Trajectory
from vardax_flax.streams import SeedStream
from vardax_flax.training import FitConfig, OptimConfig, eval_step, fit, reconstruction_loss, train_loss_fn, train_step


def converging(model):
    """The model with weights whose descent converges: along the gradient, and a little as a random memory says."""
    model = perturbed(model, 0.05)
    for part in jax.tree.leaves(nnx.state(model.prior, nnx.Param), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        part[...] = 0.5 * part[...]
    kernel = model.modulator.leave.kernel
    channels = model.layout.channels
    kernel[...] = kernel[...].at[:channels].add(jnp.eye(channels))
    return model


def solver_gradient(model, adjoint, batch):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def gradient(params):
        def total(params):
            solver = nnx.merge(graphdef, params, rest)
            solver.adjoint = adjoint
            return jnp.square(solver.solve(batch).state - batch.target).mean()

        return jax.grad(total)(params)

    return jax.tree.leaves(gradient(params))


def distance(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def relative(found, exact):
    return distance(found, exact) / max(float(jnp.abs(leaf).max()) for leaf in exact)


# --- gradients ---


def one_and_two_dimensions(**options):
    one = FourDVarNet1D(4, 12, latent_dim=3, hidden_dim=4, rngs=nnx.Rngs(0, params=jax.random.key(0)), **options)
    two = FourDVarNet2D(3, 6, 5, latent_dim=3, hidden_dim=4, rngs=nnx.Rngs(0), **options)
    return [(one, observed((2, 12, 4))), (two, observed((2, 3, 6, 5)))]


@mostly_slow("steps", [7, 1])
def test_checkpoints_give_the_gradient_of_the_unrolled_loop(x64, steps):
    for model, batch in one_and_two_dimensions(n_solver_steps=steps):
        model = perturbed(model, 0.3)
        plain = solver_gradient(model, RecursiveCheckpointAdjoint(keep_all=True), batch)
        assert max(float(jnp.abs(leaf).max()) for leaf in plain) > 1e-3
        assert distance(solver_gradient(model, RecursiveCheckpointAdjoint(), batch), plain) < 1e-10


@mostly_slow("solver", ["neumann", "gmres"])
def test_implicit_is_unrolled_at_convergence_modulator_included(x64, solver):
    for model, batch in one_and_two_dimensions(n_solver_steps=400, alpha=0.1):
        model = converging(model)
        state = lambda n, model=model, batch=batch: _steps(model, n).solve(batch)  # noqa: E731
        assert float(jnp.abs(state(400).state - state(401).state).max()) < 1e-9  # it has converged
        unrolled = solver_gradient(model, RecursiveCheckpointAdjoint(), batch)
        implicit = solver_gradient(model, ImplicitAdjoint(solver, tolerance=1e-10, max_steps=400), batch)
        assert relative(implicit, unrolled) < 1e-4


def _steps(model, n):
    model.config = dataclasses.replace(model.config, n_solver_steps=n)
    return model


def test_k_steps_come_nearer_to_the_whole_gradient(x64):
    model, batch = one_and_two_dimensions(n_solver_steps=400, alpha=0.1)[0]
    model = converging(model)
    exact = solver_gradient(model, RecursiveCheckpointAdjoint(), batch)
    errors = [relative(solver_gradient(model, KStepAdjoint(k), batch), exact) for k in (1, 10, 30, 90)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-2 * errors[0]


def test_memory_and_program_do_not_grow_with_the_steps():
    def compiled(steps, adjoint):
        model = FourDVarNet2D(5, 24, 24, latent_dim=8, hidden_dim=8, n_solver_steps=steps, solver_adjoint=adjoint, rngs=nnx.Rngs(0))
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        batch = observed((2, 5, 24, 24), dtype=jnp.float32)
        total = lambda params: nnx.merge(graphdef, params, rest).loss(batch, jax.random.key(0))[0]  # noqa: E731
        lowered = jax.jit(jax.grad(total)).lower(params)
        return lowered.compile().memory_analysis().temp_size_in_bytes, len(lowered.as_text())

    (few, small), (many, large) = compiled(5, RecursiveCheckpointAdjoint()), compiled(40, RecursiveCheckpointAdjoint())
    assert many < 3 * few and large < 1.2 * small
    assert many < 0.5 * compiled(40, RecursiveCheckpointAdjoint(keep_all=True))[0]


def test_named_solves_have_their_gradients(x64):
    for (model, batch), one_step, fixed in zip(
        one_and_two_dimensions(n_solver_steps=4),
        (one_step_solve_4dvarnet_1d, one_step_solve_4dvarnet_2d),
        (solve_4dvarnet_1d_fixedpoint, solve_4dvarnet_2d_fixedpoint),
        strict=True,
    ):
        own = model.adjoint
        model = perturbed(model, 0.2)
        np.testing.assert_array_equal(one_step(model, batch).state, model.solve(batch).state)
        np.testing.assert_array_equal(fixed(model, batch, tolerance=1e-8).state, model.solve(batch).state)
        assert model.adjoint == own
        inside = jax.jit(lambda batch: one_step(model, batch).state)(batch)  # noqa: B023
        np.testing.assert_allclose(inside, model.solve(batch).state, rtol=1e-9, atol=1e-11)


@mostly_slow("kind", sorted(ADJOINTS), ["implicit"])
def test_a_fresh_solver_trains_with_every_adjoint(kind):
    model = FourDVarNet1D(3, 12, latent_dim=3, hidden_dim=4, n_solver_steps=4, solver_adjoint=ADJOINTS[kind](), rngs=nnx.Rngs(0))
    batch = observed((4, 12, 3), dtype=jnp.float32)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    losses = [float(train_step(model, optimizer, batch, jax.random.key(i))[0]) for i in range(20)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_a_fixed_point_that_is_none_may_be_an_error():
    model = FourDVarNet1D(3, 12, latent_dim=3, hidden_dim=4, n_solver_steps=2, rngs=nnx.Rngs(0))  # its steps do nothing
    batch = observed((2, 12, 3), dtype=jnp.float32)
    assert not np.isfinite(solver_gradient(model, ImplicitAdjoint(otherwise="nan"), batch)[0]).any()


# --- the classical answers it contains ---


def test_gradient_descent_agrees_with_optimal_interpolation(x64):
    times, sites, prior_weight = 2, 8, 0.3
    distances = np.abs(np.subtract.outer(np.arange(sites), np.arange(sites)))
    root = np.linalg.inv(np.linalg.cholesky(np.exp(-distances / 2.0)))  # B^{-1/2}
    batch = observed((3, times, sites))
    phi = lambda x: x - x @ root.T  # noqa: E731  so that ‖x − φ(x)‖² = xᵀ B⁻¹ x
    config = FourDVarNetConfig(
        prior=IdentityPriorConfig(), n_solver_steps=200, alpha=0.1, prior_weight=prior_weight, first_guess="zero", axes="space"
    )
    model = FourDVarNet(phi, IdentityModulator(), None, config, layout=Layout((times, sites), "space", False))
    found = model(batch)
    inverse = root.T @ root
    for i in range(3):
        for t in range(times):
            m, y = np.asarray(batch.mask[i, t]), np.asarray(batch.input[i, t])
            analysis = np.linalg.solve(np.diag(m) + prior_weight * inverse, m * y)
            np.testing.assert_allclose(found[i, t], analysis, atol=1e-2)


def test_an_observation_operator_is_seen_through(x64):
    times, sites = 2, 6
    average = lambda x: x.reshape(times, 3, 2).mean(axis=-1)  # noqa: E731
    y = jnp.asarray(np.random.default_rng(0).normal(size=(4, times, 3)))
    config = FourDVarNetConfig(prior=IdentityPriorConfig(), n_solver_steps=300, alpha=0.4, first_guess="zero")
    model = FourDVarNet(lambda x: x, IdentityModulator(), average, config, layout=Layout((times, sites), "space", False))
    found = model(Batch(y, jnp.ones_like(y)))
    assert found.shape == (4, times, sites)
    np.testing.assert_allclose(jax.vmap(average)(found), y, atol=1e-6)
    with pytest.raises(ConfigError, match="first_guess"):
        FourDVarNet(lambda x: x, IdentityModulator(), average, FourDVarNetConfig(), layout=Layout((times, sites), "space", False))


def test_the_cost_is_that_of_its_definition(x64):
    batch = observed((2, 7, 3))
    model = assemble(nnx.Rngs(0), (7, 3), FourDVarNetConfig(prior_weight=0.7, **SMALL))
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 7, 3)))
    by_hand = ((batch.mask * (x - batch.input)) ** 2).sum((1, 2)) + 0.7 * ((x - model.prior(x)) ** 2).sum((1, 2))
    np.testing.assert_allclose(model.cost(x, model.prior, batch.input, batch.mask), by_hand, rtol=1e-12)


# --- training ---


def test_losses_are_those_of_their_definitions(x64):
    batch = observed((4, 9, 3))
    config = FourDVarNetConfig(loss=SolverLoss(reconstruction=2.0, gradient=3.0, prior=0.5), axes="time", **SMALL)
    model = perturbed(assemble(nnx.Rngs(0), (9, 3), config), 0.1)
    total, terms = model.loss(batch, jax.random.key(0))
    x = model.solve(batch).state
    error = x - batch.target
    by_hand = {
        "reconstruction": (error**2).mean(),
        "gradient": (jnp.diff(error, axis=1) ** 2).mean(),
        "prior": ((x - model.prior(x)) ** 2).mean() + ((batch.target - model.prior(batch.target)) ** 2).mean(),
    }
    for name, value in by_hand.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-6)
    np.testing.assert_allclose(total, 2 * terms["reconstruction"] + 3 * terms["gradient"] + 0.5 * terms["prior"], rtol=1e-12)
    np.testing.assert_allclose(eval_step(model, batch, jax.random.key(0))[0], total, rtol=1e-12)
    np.testing.assert_allclose(reconstruction_loss(model, batch), by_hand["reconstruction"], rtol=1e-6)


def test_it_is_trained_by_fit_and_beats_interpolation(tmp_path):
    simulator = Lorenz63Trajectory(steps=40, observe_every_step=8, margin=4)
    config = FourDVarNetConfig(
        prior=DynamicalPriorConfig(), modulator=ConvLSTMConfig(hidden=8, kernel_size=5), axes="time", n_solver_steps=4, alpha=1.0,
        prior_weight=10.0, patch=(32, 3),
    )  # fmt: skip
    model = config.build(simulator, nnx.Rngs(0))
    schedule = FitConfig(steps=300, eval_every=100, optim=OptimConfig(learning_rate=5e-3))
    fit(model, SeedStream(simulator, 32), schedule, run_dir=tmp_path / "run")
    batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(77), 64))
    error = lambda x: float(jnp.square(x - batch.target)[:, 4:-4].mean())  # noqa: E731
    guess = model.scale.inverse(model.first_guess(batch))
    assert error(model(batch)) < 0.6 * error(guess)


def test_a_missing_target_is_an_error():
    model = FourDVarNet1D(3, 8, latent_dim=2, hidden_dim=2, n_solver_steps=1, rngs=nnx.Rngs(0))
    batch = observed((2, 8, 3), dtype=jnp.float32)._replace(target=None)
    for call in (train_loss_fn, lambda model, batch, key: model.loss(batch, key)):
        with pytest.raises(ValueError, match="expected `target`"):
            call(model, batch, jax.random.key(0))


# --- patches ---


def test_patches_put_a_field_together():
    batch = observed((2, 3, 20, 13), dtype=jnp.float32)
    same = overlap_add(lambda part: 2.0 * part.input, batch, (8, 6), (5, 6))
    np.testing.assert_allclose(same, 2 * batch.input, rtol=1e-5)
    model = FourDVarNet2D(3, 8, 8, latent_dim=2, hidden_dim=2, n_solver_steps=1, rngs=nnx.Rngs(0))
    assert overlap_add(model, batch, (8, 8)).shape == (2, 3, 20, 13)
    full = overlap_add(model, batch, (8, 8))
    np.testing.assert_allclose(full, overlap_add(lambda part: model(part), batch, (8, 8)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="finite values in `input`"):
        overlap_add(model, batch._replace(input=jnp.where(batch.mask > 0, jnp.nan, 0)), (8, 8))
    with pytest.raises(ValueError, match="`mask` of shape"):
        overlap_add(model, batch._replace(mask=batch.mask[..., :-1]), (8, 8))
    for patch, stride in (((21, 5), None), ((8, 8), (9, 4)), ((1, 8), None)):
        with pytest.raises(ConfigError, match="expected"):
            overlap_add(model, batch, patch, stride)


def test_random_patches_are_the_same_window_of_every_field():
    place = jnp.broadcast_to(jnp.arange(20.0)[:, None] * 100 + jnp.arange(13.0), (2, 3, 20, 13))
    batch = Batch(place, jnp.ones_like(place), place)
    corners = set()
    for seed in range(8):
        patch = random_patch(batch, jax.random.key(seed), (8, 30))
        assert patch.input.shape == (2, 3, 8, 13)
        np.testing.assert_array_equal(patch.input, patch.target)
        np.testing.assert_array_equal(np.diff(patch.input[0, 0, :, 0]), 100)
        corners.add(float(patch.input[0, 0, 0, 0]))
    assert len(corners) > 2
