"""Every model and every cost has the tangent linear and the adjoint that belong to it."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.assimilation.cases import check_derivatives, lorenz63, lorenz96, two_level
from tests.assimilation.test_covariance import spd
from vardax_flax.assimilation import (
    DiffraxStep,
    Hybrid,
    IncrementalFourDVar,
    LatentFourDVar,
    Localised,
    Matern,
    StrongFourDVar,
    ThreeDVar,
    WeakFourDVar,
    dense,
    fourier_basis,
)
from vardax_flax.core.batch import Batch
from vardax_flax.simulators import Lorenz63, Lorenz96, Lorenz96TwoLevel

MODELS = {
    "Lorenz-63": (lorenz63(10), lambda: Lorenz63().attractor()[0]),
    "Lorenz-63 by diffrax": (
        DiffraxStep(Lorenz63().tendency, 0.1, dt=0.01, adjoint=diffrax.DirectAdjoint(), max_steps=16),
        lambda: Lorenz63().attractor()[0],
    ),
    "Lorenz-96": (lorenz96, lambda: Lorenz96().attractor()[0]),
    "two-level Lorenz-96": (two_level, lambda: Lorenz96TwoLevel().attractor()[0]),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "diffrax" in name else ()) for name in MODELS])
def test_a_model(x64, name):
    step, state = MODELS[name]
    check_derivatives(step, state())


SIX = {"background_cov": dense(spd(6)), "obs_cov": spd(3, seed=1), "obs_op": lambda x: jnp.sin(x[:3]) + x[3:]}
PROBLEMS = {
    "3D-Var": lambda: ThreeDVar((6,), **SIX),
    "strong": lambda: StrongFourDVar((6,), model, **SIX),
    "weak": lambda: WeakFourDVar((6,), model, **SIX, model_cov=dense(spd(6, seed=2))),
    "incremental": lambda: IncrementalFourDVar((6,), model, **SIX, basis=fourier_basis((6,), 1)),
    "latent": lambda: LatentFourDVar(
        (6,), model, decoder=lambda z: jnp.tanh(jnp.tile(z, 3)), latent_shape=(2,), **SIX | {"background_cov": 1.0}
    ),
    "hybrid": lambda: StrongFourDVar(
        (6,), model, **SIX | {"background_cov": Hybrid(SIX["background_cov"], Localised(spd(6), Matern((6,), length=1.0)), 0.5)}
    ),
}


def model(x):
    return x + 0.1 * jnp.roll(x, 1) * (jnp.roll(x, -1) - x)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_cost_and_its_gradient(x64, name):
    method = PROBLEMS[name]()
    rng = np.random.default_rng(0)
    shape = (3, 3) if method.in_window else (1, 3)
    background = rng.normal(size=method.background_shape)
    arrays = rng.normal(size=shape), (rng.random(shape) < 0.7).astype(float)
    element = Batch(*map(jnp.asarray, arrays), background=jnp.asarray(background))
    problem = method.problem(element)
    w = rng.normal(size=problem.start.shape)
    check_derivatives(problem.residual, w)
    check_derivatives(lambda w: 0.5 * jnp.square(problem.residual(w)).sum()[None], w)
