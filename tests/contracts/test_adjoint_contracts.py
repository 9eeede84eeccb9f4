"""The tangent of every differentiable forward model, observation operator and cost is its derivative, and its adjoint the transpose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.assimilation.cases import lorenz63
from vardax_flax.assimilation import (
    Fusion,
    Identity,
    IncrementalFourDVar,
    Interpolation,
    LatentFourDVar,
    Linear,
    OptimalInterpolation,
    StrongFourDVar,
    ThreeDVar,
    WeakFourDVar,
)
from vardax_flax.assimilation.methods import VariationalMethod
from vardax_flax.assimilation.observation import ObservationOperator
from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import ControlVariable, LeastSquares, Physics
from vardax_flax.simulators import SIMULATORS, LinearGaussian, Tracks2D
from vardax_flax.validation import assert_tangent_and_adjoint

KEY = jax.random.key(0)


def example(kind):
    return LinearGaussian.random(3, 4, missing_rate=0.1) if kind == "linear_gaussian" else SIMULATORS[kind]()


def having(capability):
    return sorted(kind for kind, cls in SIMULATORS.items() if issubclass(cls, capability))


def everything():
    """Name and maker of (function, state) for each registered part; made under double precision."""
    for kind in having(Physics):
        yield f"{kind} predict", functools.partial(forward_model, kind)
    for kind in having(LeastSquares):
        yield f"{kind} cost", functools.partial(cost, kind)
    for kind in having(ControlVariable):
        yield f"{kind} state", functools.partial(control, kind, "state")
        yield f"{kind} misfit", functools.partial(control, kind, "misfit")
    for name, (operator, shape) in OPERATORS.items():
        yield name, functools.partial(observation, operator, shape)
    for name, method in METHODS.items():
        yield f"{name} cost", functools.partial(assimilation, method)


def squared(function):
    return lambda x: 0.5 * jnp.square(function(x)).sum()


def forward_model(kind):
    simulator = example(kind)
    return simulator.predict, simulator.sample(KEY).target


def cost(kind):
    simulator = example(kind)
    element = simulator.sample(KEY)
    return squared(lambda x: simulator.residual(x, element)), element.target


def control(kind, part):
    simulator = example(kind)
    element = simulator.sample(KEY)
    w = jax.random.normal(KEY, simulator.control_shape, jnp.float64)
    return (lambda w: getattr(simulator, part)(w, element)), w


OPERATORS = {
    "identity": (lambda: Identity(), (4,)),
    "linear": (lambda: Linear(np.random.default_rng(0).normal(size=(2, 4)), [1.0, 2.0]), (4,)),
    "interpolation": (lambda: Interpolation([[0.5, 1.25], [2.9, 0.0]]), (4, 5)),
    "interpolation on a ring": (lambda: Interpolation([[3.5], [-0.25]], periodic=True), (4,)),
    "fusion": (lambda: Fusion([Identity(), Linear(np.ones((1, 4)) / 4), jnp.sin]), (4,)),
}


def observation(operator, shape):
    return operator(), jnp.asarray(np.random.default_rng(1).normal(size=shape))


COVARIANCE = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]])
STEP = lorenz63(10)
METHODS = {
    "optimal interpolation": lambda: OptimalInterpolation((3,), background_cov=COVARIANCE, obs_cov=2.0),
    "3D-Var": lambda: ThreeDVar((3,), background_cov=COVARIANCE, obs_cov=2.0, obs_op=lambda x: jnp.sin(x) * x[0]),
    "strong 4D-Var": lambda: StrongFourDVar((3,), STEP, background_cov=COVARIANCE, obs_cov=2.0),
    "weak 4D-Var": lambda: WeakFourDVar((3,), STEP, background_cov=COVARIANCE, obs_cov=2.0, model_cov=0.1),
    "incremental 4D-Var": lambda: IncrementalFourDVar((3,), STEP, background_cov=COVARIANCE, obs_cov=2.0),
    "latent 4D-Var": lambda: LatentFourDVar(
        (3,), STEP, decoder=lambda z: jnp.append(z, 20 + jnp.sin(z).sum()), latent_shape=(2,), background_cov=1.0, obs_cov=2.0,
        encoder=lambda x: x[:2],
    ),
}  # fmt: skip


def assimilation(method):
    method = method()
    rng = np.random.default_rng(2)
    mask = np.ones((4, 3))
    mask[1, 2] = mask[2] = 0
    background = np.array([-5.0, -6.0, 22.0])
    element = Batch(jnp.asarray(background + rng.normal(size=(4, 3))), jnp.asarray(mask), background=jnp.asarray(background))
    if not method.in_window:
        element = element._replace(input=element.input[:1], mask=element.mask[:1])
    problem = method.problem(element)
    w = jnp.asarray(rng.normal(size=problem.start.shape))
    return squared(problem.residual), w


CASES = dict(everything())
COMPILE_LONG = ("tracks2d", "weak 4D-Var", "strong 4D-Var", "latent 4D-Var", "lorenz96", "lorenz63_climatology")


def test_nothing_is_left_out():
    def leaves(cls):
        return {cls} if not cls.__subclasses__() else {cls}.union(*map(leaves, cls.__subclasses__()))

    library = lambda classes: {c for c in classes if c.__module__.startswith("vardax_flax") and not c.__abstractmethods__}  # noqa: E731
    with jax.enable_x64(True):
        assert library(leaves(ObservationOperator)) <= {type(operator()) for operator, _ in OPERATORS.values()}
        assert library(leaves(VariationalMethod)) <= {type(method()) for method in METHODS.values()}
    assert {"lorenz63", "lorenz96", "linear_gaussian"} <= set(having(Physics)) and Tracks2D.kind in having(ControlVariable)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name.startswith(COMPILE_LONG) else ()) for name in CASES])
def test_tangent_and_adjoint(name, x64):
    function, x = CASES[name]()
    assert_tangent_and_adjoint(function, x, key=KEY)
