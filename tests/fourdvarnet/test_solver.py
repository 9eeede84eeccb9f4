"""The learned solver: its gradient by every adjoint, the classical answers it contains, its parts, its sizes and its errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.slow import mostly_slow
from vardax_flax.adjoints import ADJOINTS, ImplicitAdjoint, KStepAdjoint, RecursiveCheckpointAdjoint
from vardax_flax.core.batch import Batch, Batch1D, Batch2D, Batch2DMultivar
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.fourdvarnet import (
    MODULATORS,
    PRIORS,
    AttentionModulatorConfig,
    BilinearPriorConfig,
    ConvLSTMConfig,
    ConvLSTMGradMod1D,
    ConvLSTMGradMod2D,
    ConvPriorConfig,
    DynamicalPriorConfig,
    FourDVarNet,
    FourDVarNet1D,
    FourDVarNet2D,
    FourDVarNetConfig,
    IdentityModulator,
    IdentityPriorConfig,
    Layout,
    MLPPriorConfig,
    NewtonConfig,
    SolverLoss,
    one_step_solve_4dvarnet_1d,
    one_step_solve_4dvarnet_2d,
    overlap_add,
    random_patch,
    solve_4dvarnet_1d_fixedpoint,
    solve_4dvarnet_2d_fixedpoint,
)
from vardax_flax.fourdvarnet.model import assemble
from vardax_flax.simulators import LinearGaussian, Lorenz63Trajectory
from vardax_flax.streams import SeedStream
from vardax_flax.training import FitConfig, OptimConfig, eval_step, fit, reconstruction_loss, train_loss_fn, train_step

SMALL = {"prior": ConvPriorConfig(latent=4), "modulator": ConvLSTMConfig(hidden=4), "n_solver_steps": 3}


def observed(shape, seed=0, rate=0.4, dtype=float):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    mask = (rng.random(shape) < rate).astype(float)
    return Batch(*(jnp.asarray(a, dtype) for a in (np.where(mask > 0, x, 0), mask, x)))


def perturbed(model, size, seed=1):
    """The model with weights away from their start, where the last layers are zero."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    dtype = jnp.result_type(float)
    noisy = jax.tree.map(lambda leaf: leaf.astype(dtype) + size * jax.random.normal(next(keys), leaf.shape, dtype), params)
    return nnx.merge(graphdef, noisy, rest)


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


@pytest.mark.parametrize("steps", [1, 7])
def test_checkpoints_give_the_gradient_of_the_unrolled_loop(x64, steps):
    for model, batch in one_and_two_dimensions(n_solver_steps=steps):
        model = perturbed(model, 0.3)
        plain = solver_gradient(model, RecursiveCheckpointAdjoint(keep_all=True), batch)
        assert max(float(jnp.abs(leaf).max()) for leaf in plain) > 1e-3
        assert distance(solver_gradient(model, RecursiveCheckpointAdjoint(), batch), plain) < 1e-10


@pytest.mark.parametrize("solver", ["gmres", "neumann"])
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
    model = assemble((7, 3), FourDVarNetConfig(prior_weight=0.7, **SMALL), None, nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 7, 3)))
    by_hand = ((batch.mask * (x - batch.input)) ** 2).sum((1, 2)) + 0.7 * ((x - model.prior(x)) ** 2).sum((1, 2))
    np.testing.assert_allclose(model.cost(x, model.prior, batch.input, batch.mask), by_hand, rtol=1e-12)


# --- parts ---


def example_prior(kind):
    return {"unet": {"channels": (4, 4)}, "conv": {"latent": 3}, "bilinear": {"latent": 3}, "mlp": {"latent": 3}}.get(kind, {})


CASES = [(prior, "convlstm") for prior in sorted(PRIORS)] + [("conv", modulator) for modulator in sorted(MODULATORS)]


@mostly_slow(("prior", "modulator"), CASES, quick=[("dynamical", "convlstm"), ("conv", "attention")])
@pytest.mark.parametrize("axes", ["time", "space", "space-time"])
def test_every_part_learns_chunks_and_survives_extremes(prior, modulator, axes):
    if prior == "unet" and axes == "space-time":
        pytest.skip("a U-Net wants axes of one kind when space is periodic")
    simulator = Lorenz63Trajectory(steps=12, observe_every_step=3, margin=2)
    parts = {"prior": PRIORS[prior](**example_prior(prior)), "modulator": MODULATORS[modulator](hidden=8)} if modulator != "identity" else {
        "prior": PRIORS[prior](**example_prior(prior)), "modulator": MODULATORS[modulator]()
    }  # fmt: skip
    if prior == "unet" and axes == "space":
        parts["prior"] = PRIORS["unet"](channels=(4,), depth=(1,))
    config = FourDVarNetConfig(**parts, axes=axes, n_solver_steps=3, alpha=0.05 if modulator == "identity" else 0.5)
    assert from_dict(FourDVarNetConfig, to_dict(config)) == config
    batch = jax.vmap(simulator.sample)(jax.random.split(jax.random.key(0), 8))
    model = config.build(simulator, nnx.Rngs(0))
    model.calibrate(batch)
    whole = model(batch)
    assert whole.shape == batch.target.shape and bool(jnp.isfinite(whole).all())
    np.testing.assert_allclose(model(jax.tree.map(lambda leaf: leaf[2:5], batch)), whole[2:5], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(model(jax.tree.map(lambda leaf: leaf[0], batch)), whole[0], rtol=2e-4, atol=2e-4)  # without a batch axis
    hidden = batch._replace(input=jnp.where(batch.mask > 0, batch.input, jnp.nan), mask=batch.mask)
    np.testing.assert_allclose(model(hidden), whole, rtol=1e-5, atol=1e-5)
    nothing = batch._replace(mask=jnp.zeros_like(batch.mask), input=jnp.zeros_like(batch.input))
    assert bool(jnp.isfinite(model(nothing)).all())
    if modulator == "identity" and prior in ("dynamical", "identity"):
        return  # nothing to learn
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    losses = [float(train_step(model, optimizer, batch, jax.random.key(i))[0]) for i in range(15)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize("downsample", [2, 3])
def test_a_coarse_memory_covers_any_size(downsample):
    modulator = ConvLSTMConfig(hidden=4, downsample=downsample).build(Layout((2, 7, 5), "space", False), nnx.Rngs(0))
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 7, 5)), jnp.float32)
    carry, context = modulator.start(gradient, None)
    assert carry.h.shape == (3, -(-7 // downsample), -(-5 // downsample), 4)
    modulator = perturbed(modulator, 0.1)
    update, carry = modulator(gradient, gradient, carry, context)
    assert update.shape == gradient.shape
    kernel = modulator.leave.kernel
    kernel[...] = kernel[...].at[2:].set(0).at[:2].set(jnp.eye(2))  # what it says of the gradient stays as fine as that is
    update, _ = modulator(gradient, gradient, *modulator.start(gradient, None))
    unit = jnp.sqrt(jnp.square(gradient).mean(axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(update - modulator.leave.bias[...][:, None, None], gradient / unit, rtol=1e-4, atol=1e-5)


def test_dropout_is_of_training_alone_and_fixed_within_a_solve():
    layout = Layout((6, 3), "time", False)
    modulator = perturbed(ConvLSTMConfig(hidden=16, dropout=0.5).build(layout, nnx.Rngs(0)), 0.1)
    gradient = jnp.ones((4, 6, 3))
    assert set(np.unique(modulator.start(gradient, jax.random.key(0))[1].kept)) == {0.0, 2.0}
    assert set(np.unique(modulator.start(gradient, None)[1].kept)) == {1.0}


def test_normalised_updates_do_not_see_the_units_of_the_cost():
    modulator = perturbed(ConvLSTMConfig(hidden=4).build(Layout((6, 3), "time", False), nnx.Rngs(0)), 0.1)
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
    updates = [modulator(c * gradient, gradient, *modulator.start(c * gradient, None))[0] for c in (1.0, 1000.0)]
    np.testing.assert_allclose(*updates, rtol=1e-4, atol=1e-6)


def test_a_periodic_solver_commutes_with_shifts():
    model = perturbed(FourDVarNet2D(3, 8, 8, latent_dim=3, hidden_dim=4, n_solver_steps=3, periodic=True, rngs=nnx.Rngs(0)), 0.2)
    batch = observed((2, 3, 8, 8), dtype=jnp.float32)
    shifted = jax.tree.map(lambda leaf: jnp.roll(leaf, (3, 5), axis=(-2, -1)), batch)
    np.testing.assert_allclose(model(shifted), jnp.roll(model(batch), (3, 5), axis=(-2, -1)), atol=2e-5)


def test_sizes_along_the_grid_are_free_and_the_usual_ones_small():
    model = FourDVarNet2D(15, 64, 64, rngs=nnx.Rngs(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert size < 4e5
    small = FourDVarNet2D(3, 8, 8, latent_dim=3, hidden_dim=4, n_solver_steps=2, rngs=nnx.Rngs(0))
    assert small(Batch2D(*observed((2, 3, 11, 7), dtype=jnp.float32)[:2])).shape == (2, 3, 11, 7)
    series = FourDVarNet1D(4, 12, latent_dim=3, hidden_dim=4, n_solver_steps=2, rngs=nnx.Rngs(0))
    assert series(Batch1D(*observed((2, 30, 4), dtype=jnp.float32)[:2])).shape == (2, 30, 4)
    many = FourDVarNet2D(3, 8, 8, latent_dim=3, hidden_dim=4, n_solver_steps=2, variables=2, rngs=nnx.Rngs(0))
    batch = Batch2DMultivar(*observed((2, 3, 2, 8, 8), dtype=jnp.float32)[:3])
    many.calibrate(batch._replace(target=batch.target * jnp.array([1.0, 100.0])[:, None, None]))
    assert many(batch._replace(target=None)).shape == (2, 3, 2, 8, 8)
    assert many.scale.std[...].ravel()[1] > 50 * many.scale.std[...].ravel()[0]


def test_modulators_by_their_usual_names():
    one, two = ConvLSTMGradMod1D(12, 8, rngs=nnx.Rngs(0)), ConvLSTMGradMod2D(3, 8, 5, rngs=nnx.Rngs(0))
    for modulator, shape in ((one, (2, 12, 9)), (two, (2, 3, 6, 7))):
        gradient = jnp.ones(shape)
        update, carry = modulator(gradient, gradient, *modulator.start(gradient, None))
        assert update.shape == shape and carry.h.shape == carry.c.shape


# --- training ---


def test_losses_are_those_of_their_definitions(x64):
    batch = observed((4, 9, 3))
    config = FourDVarNetConfig(loss=SolverLoss(reconstruction=2.0, gradient=3.0, prior=0.5), axes="time", **SMALL)
    model = perturbed(assemble((9, 3), config, None, nnx.Rngs(0)), 0.1)
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


# --- errors ---


def patched(patch, **options):
    return assemble((6, 3), FourDVarNetConfig(patch=patch, **{**SMALL, **options}), None, nnx.Rngs(0))


@pytest.mark.parametrize("field", ["background", "noise_scale"])
def test_what_a_solver_does_not_use_is_refused(field):
    model = assemble((6, 3), FourDVarNetConfig(**SMALL), None, nnx.Rngs(0))
    batch = observed((2, 6, 3), dtype=jnp.float32)._replace(target=None)
    with pytest.raises(ValueError, match=f"expected no `{field}`"):
        model(batch._replace(**{field: jnp.ones((2, 6, 3))}))
    with pytest.raises(ValueError, match="to calibrate"):
        model.calibrate(batch)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 2, 3, 5)])
@pytest.mark.parametrize("axes", ["time", "space", "space-time"])
def test_each_variable_has_its_own_scale(shape, axes):
    model = assemble(shape, FourDVarNetConfig(axes=axes, **SMALL), None, nnx.Rngs(0))
    variable = {2: 1, 4: 1}.get(len(shape)) if len(shape) == 4 or axes == "time" else None
    size = jnp.ones(shape) if variable is None else 10.0 ** jnp.arange(shape[variable]).reshape(
        *(-1 if axis == variable else 1 for axis in range(len(shape)))
    ) * jnp.ones(shape)  # fmt: skip
    batch = observed((64, *shape), dtype=jnp.float32)
    batch = jax.tree.map(lambda leaf: leaf, batch._replace(target=batch.target * size, input=batch.input * size))
    model.calibrate(batch)
    z = model.scale(batch.target)
    np.testing.assert_allclose(z.std(), 1, rtol=0.01)
    assert model(batch._replace(target=None)).shape == batch.target.shape


@pytest.mark.parametrize(
    "options",
    [
        {"n_solver_steps": 0}, {"alpha": 0.0}, {"prior_weight": -1.0}, {"patch": (1, 4)},
    ],
)  # fmt: skip
def test_bad_options_are_errors(options):
    with pytest.raises(ConfigError, match="expected"):
        FourDVarNetConfig(**options)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SolverLoss(0.0), "weights"),
        (lambda: ConvLSTMConfig(dropout=1.0), "dropout"),
        (lambda: AttentionModulatorConfig(hidden=30, heads=4), "multiple"),
        (lambda: BilinearPriorConfig(latent=0), "positive"),
        (lambda: NewtonConfig(steps=0), "steps"),
        (lambda: NewtonConfig(model_std=(0.1, 0.0)), "model_std"),
        (lambda: Layout((3,), "time", False), "state"),
        (lambda: FourDVarNetConfig().build(LinearGaussian.random(3, 4), nnx.Rngs(0)), "grid of the state"),
        (lambda: assemble((5, 3), FourDVarNetConfig(prior=DynamicalPriorConfig()), None, nnx.Rngs(0)), "Stepping"),
        (lambda: assemble((5, 3), FourDVarNetConfig(newton=NewtonConfig()), None, nnx.Rngs(0)), "Stepping"),
        (lambda: from_dict(FourDVarNetConfig, {"first_guess": "zeros"}), "first_guess|zero"),
        (lambda: patched((4, 3), axes="time"), None),
        (lambda: patched((4, 2), axes="time"), "whole"),
        (lambda: patched((4, 2), axes="space-time", periodic=True), "whole"),
        (lambda: patched((4, 3, 3)), "at most 2 axes"),
        (lambda: patched((4, 3), prior=MLPPriorConfig()), "any size"),
    ],
)
def test_what_does_not_fit_together_is_an_error(make, match):
    if match is None:
        assert make() is not None
        return
    with pytest.raises(ConfigError, match=match):
        make()
