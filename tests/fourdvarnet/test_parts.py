"""The parts of the learned solver: every prior and modulator, sizes, scales, and what does not fit together."""


import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.fourdvarnet.cases import SMALL, observed, perturbed
from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch1D, Batch2D, Batch2DMultivar
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.fourdvarnet import (
    MODULATORS,
    PRIORS,
    AttentionModulatorConfig,
    BilinearPriorConfig,
    ClimateConfig,
    ConvLSTMConfig,
    ConvLSTMGradMod1D,
    ConvLSTMGradMod2D,
    DynamicalPriorConfig,
    FourDVarNet1D,
    FourDVarNet2D,
    FourDVarNetConfig,
    Layout,
    MLPPriorConfig,
    NewtonConfig,
    SolverLoss,
)
from vardax_flax.fourdvarnet.model import assemble
from vardax_flax.simulators import GaussianSites, LinearGaussian, Lorenz63Trajectory, Lorenz96
from vardax_flax.training import train_step

# --- parts ---


def example_prior(kind):
    return {"unet": {"channels": (4, 4)}, "conv": {"latent": 3}, "bilinear": {"latent": 3}, "mlp": {"latent": 3}}.get(kind, {})


CASES = [(prior, "convlstm") for prior in sorted(PRIORS)] + [("conv", modulator) for modulator in sorted(MODULATORS)]


@mostly_slow(("prior", "modulator"), CASES, quick=[("dynamical", "convlstm"), ("conv", "attention")])
@mostly_slow("axes", ["time", "space", "space-time"])
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


@pytest.mark.parametrize("kind", ["convlstm", "mlp", "attention"])
def test_a_first_guess_that_is_stationary_does_not_blow_up_what_follows(kind):
    modulator = MODULATORS[kind](hidden=4).build(Layout((6, 3), "time", False), nnx.Rngs(0))
    modulator.leave.kernel[...] = modulator.leave.kernel[...].at[:3].set(jnp.eye(3))  # u is the gradient as the network sees it
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
    carry, context = modulator.start(jnp.zeros_like(gradient), None)
    sizes = [float(jnp.square(modulator(c * gradient, gradient, carry, context)[0]).mean()) for c in (1.0, 1e4)]
    np.testing.assert_allclose(sizes, 1, rtol=1e-3)


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


# --- errors ---


def ring(**options):
    return FourDVarNetConfig(**{**SMALL, **options, "first_guess": "background", "periodic": True}).build(Lorenz96(n_sites=12), nnx.Rngs(0))


def patched(patch, **options):
    return assemble(nnx.Rngs(0), (6, 3), FourDVarNetConfig(patch=patch, **{**SMALL, **options}))


@pytest.mark.parametrize("field", ["background", "noise_scale"])
def test_what_a_solver_does_not_use_is_refused(field):
    model = assemble(nnx.Rngs(0), (6, 3), FourDVarNetConfig(**SMALL))
    batch = observed((2, 6, 3), dtype=jnp.float32)._replace(target=None)
    with pytest.raises(ValueError, match=f"expected no `{field}`"):
        model(batch._replace(**{field: jnp.ones((2, 6, 3))}))
    with pytest.raises(ValueError, match="to calibrate"):
        model.calibrate(batch)


@mostly_slow("shape", [(4, 3), (4, 3, 5), (4, 2, 3, 5)], 3)
@mostly_slow("axes", ["time", "space", "space-time"])
def test_each_variable_has_its_own_scale(shape, axes):
    model = assemble(nnx.Rngs(0), shape, FourDVarNetConfig(axes=axes, **SMALL))
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
        (lambda: FourDVarNetConfig().build(GaussianSites(), nnx.Rngs(0)), "grid of the state"),
        (lambda: FourDVarNetConfig().build(LinearGaussian.random(4, 4), nnx.Rngs(0)), "first_guess"),
        (lambda: assemble(nnx.Rngs(0), (5,), FourDVarNetConfig()), "time axis"),
        (lambda: FourDVarNetConfig(first_guess="background", climate=ClimateConfig()), "one of a background"),
        (lambda: FourDVarNetConfig(newton=NewtonConfig(), first_guess="background"), "one of a background"),
        (lambda: FourDVarNetConfig(climate=ClimateConfig(), patch=(3, 8, 8)), "whole states"),
        (lambda: ring(patch=(6,)), "cut patches"),
        (lambda: assemble(nnx.Rngs(0), (5, 3), FourDVarNetConfig(prior=DynamicalPriorConfig())), "Stepping"),
        (lambda: assemble(nnx.Rngs(0), (5, 3), FourDVarNetConfig(newton=NewtonConfig())), "Stepping"),
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
