"""The tangent of every differentiable forward model, observation operator and cost is its derivative, and its adjoint the transpose."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from tests.assimilation.cases import lorenz63
from tests.slow import mostly_slow
from vardax_flax.assimilation import (
    DiffraxStep,
    Fusion,
    Hybrid,
    Identity,
    IncrementalFourDVar,
    Interpolation,
    LatentFourDVar,
    Linear,
    Localised,
    Matern,
    OptimalInterpolation,
    StrongFourDVar,
    ThreeDVar,
    WeakFourDVar,
    dense,
)
from vardax_flax.assimilation.methods import VariationalMethod
from vardax_flax.assimilation.observation import ObservationOperator
from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import ControlVariable, LeastSquares, Physics
from vardax_flax.simulators import SIMULATORS, LinearGaussian, Lorenz63, Tracks2D
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
    yield "step by diffrax", by_diffrax


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
    "selection": (lambda: Linear(np.eye(4)[[0, 2]]), (4,)),
    "linear": (lambda: Linear(np.random.default_rng(0).normal(size=(2, 4)), [1.0, 2.0]), (4,)),
    "interpolation": (lambda: Interpolation([[0.5, 1.25], [2.9, 0.0]]), (4, 5)),
    "interpolation on a ring": (lambda: Interpolation([[3.5], [-0.25]], periodic=True), (4,)),
    "fusion": (lambda: Fusion([Identity(), Linear(np.ones((1, 4)) / 4), jnp.sin]), (4,)),
}


def observation(operator, shape):
    return operator(), jnp.asarray(np.random.default_rng(1).normal(size=shape))


COVARIANCE = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]])
MEMBERS = np.random.default_rng(3).normal(size=(5, 3))
STEP = lorenz63(10)
METHODS = {
    "optimal interpolation": lambda: OptimalInterpolation((3,), background_cov=COVARIANCE, obs_cov=2.0),
    "3D-Var": lambda: ThreeDVar((3,), background_cov=COVARIANCE, obs_cov=2.0, obs_op=lambda x: jnp.sin(x) * x[0]),
    "strong 4D-Var": lambda: StrongFourDVar((3,), STEP, background_cov=COVARIANCE, obs_cov=2.0),
    "correlated errors of a bent, narrower operator": lambda: StrongFourDVar(
        (3,), STEP, background_cov=COVARIANCE, obs_cov=COVARIANCE[:2, :2], obs_op=lambda x: jnp.sin(x[:2]) * x[2]
    ),
    "weak 4D-Var": lambda: WeakFourDVar((3,), STEP, background_cov=COVARIANCE, obs_cov=2.0, model_cov=0.1),
    "incremental 4D-Var": lambda: IncrementalFourDVar((3,), STEP, background_cov=COVARIANCE, obs_cov=2.0),
    "incremental 4D-Var in a basis": lambda: IncrementalFourDVar(
        (3,), STEP, background_cov=COVARIANCE, obs_cov=2.0, basis=np.linalg.qr(COVARIANCE)[0][:, :2]
    ),
    "hybrid 4D-Var": lambda: StrongFourDVar(
        (3,), STEP, background_cov=Hybrid(dense(COVARIANCE), Localised(MEMBERS, Matern((3,), length=1.0)), 0.5), obs_cov=2.0
    ),
    "latent 4D-Var": lambda: LatentFourDVar(
        (3,), STEP, decoder=lambda z: jnp.append(z, 20 + jnp.sin(z).sum()), latent_shape=(2,), background_cov=1.0, obs_cov=2.0,
        encoder=lambda x: x[:2],
    ),
}  # fmt: skip


def assimilation(method):
    method = method()
    rng = np.random.default_rng(2)
    mask = np.ones((4, *method.obs_shape))
    mask[1, -1] = mask[2] = 0
    background = np.array([-5.0, -6.0, 22.0])
    observed = np.asarray(method.obs_op(jnp.asarray(background))) + rng.normal(size=mask.shape)
    element = Batch(jnp.asarray(observed), jnp.asarray(mask), background=jnp.asarray(background))
    if not method.in_window:
        element = element._replace(input=element.input[:1], mask=element.mask[:1])
    problem = method.problem(element)
    w = jnp.asarray(rng.normal(size=problem.start.shape))
    return squared(problem.residual), w


def by_diffrax():
    adjoint = diffrax.DirectAdjoint()
    return DiffraxStep(Lorenz63().tendency, 0.1, dt=0.01, adjoint=adjoint, max_steps=16), jnp.asarray(Lorenz63().attractor()[0])


CASES = dict(everything())
QUICK = [f"linear_gaussian {part}" for part in ("predict", "state", "misfit")]
QUICK += ["lorenz63 predict", "identity", "linear", "interpolation", "fusion", "3D-Var cost"]


def test_nothing_is_left_out():
    def leaves(cls):
        return {cls} if not cls.__subclasses__() else {cls}.union(*map(leaves, cls.__subclasses__()))

    library = lambda classes: {c for c in classes if c.__module__.startswith("vardax_flax") and not c.__abstractmethods__}  # noqa: E731
    with jax.enable_x64(True):
        assert library(leaves(ObservationOperator)) <= {type(operator()) for operator, _ in OPERATORS.values()}
        assert library(leaves(VariationalMethod)) <= {type(method()) for method in METHODS.values()}
    assert {"lorenz63", "lorenz96", "linear_gaussian"} <= set(having(Physics)) and Tracks2D.kind in having(ControlVariable)


@mostly_slow("name", CASES, QUICK)
def test_tangent_and_adjoint(name, x64):
    function, x = CASES[name]()
    assert_tangent_and_adjoint(function, x, key=KEY)
