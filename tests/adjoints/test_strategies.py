"""Adjoints beside the plain gradient of an unrolled loop, and inside optimistix."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from vardax_flax.adjoints import (
    ADJOINTS,
    Adjoint,
    ImplicitAdjoint,
    KStepAdjoint,
    OneStepAdjoint,
    RecursiveCheckpointAdjoint,
    to_optimistix_adjoint,
)
from vardax_flax.adjoints.loops import block_size, checkpointed
from vardax_flax.core.config import ConfigError, from_dict, to_dict

EXACT = {
    "checkpoint": RecursiveCheckpointAdjoint(),
    "keep_all": RecursiveCheckpointAdjoint(keep_all=True),
    "all steps": KStepAdjoint(10**6),
}
AT_THE_POINT = {"gmres": ImplicitAdjoint(tolerance=1e-12), "neumann": ImplicitAdjoint("neumann", tolerance=1e-12, max_steps=500)}


def contraction(args, carry):
    """Of a pair of arrays, by less than 0.6."""
    matrix, shift = args
    x, h = carry
    return jnp.tanh(matrix @ x) + shift + 0.1 * h, 0.5 * h + 0.2 * jnp.sin(x)


@pytest.fixture
def problem(x64):
    key = jax.random.key(0)
    matrix = 0.25 * jax.random.normal(key, (4, 4))
    return (matrix, jnp.linspace(-1, 1, 4)), (jnp.ones(4), jnp.zeros(4))


def gradient(adjoint, args, carry, length):
    return jax.grad(lambda args: sum(jnp.square(leaf).sum() for leaf in adjoint.run(contraction, args, carry, length)))(args)


def unrolled(args, carry, length):
    def total(args):
        state = carry
        for _ in range(length):
            state = contraction(args, state)
        return sum(jnp.square(leaf).sum() for leaf in state)

    return jax.grad(total)(args)


def distance(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 13, 20])
def test_exact_adjoints_are_the_unrolled_gradient(problem, length):
    for name, adjoint in EXACT.items():
        assert distance(gradient(adjoint, *problem, length), unrolled(*problem, length)) < 1e-10, name


def test_the_first_carry_has_its_gradient_too(problem):
    args, carry = problem
    total = lambda adjoint: lambda carry: adjoint.run(contraction, args, carry, 6)[0].sum()  # noqa: E731
    exact = jax.grad(total(RecursiveCheckpointAdjoint(keep_all=True)))(carry)
    assert distance(jax.grad(total(RecursiveCheckpointAdjoint()))(carry), exact) < 1e-12 < distance(exact, (jnp.zeros(4), jnp.zeros(4)))


@pytest.mark.parametrize("name", AT_THE_POINT)
def test_implicit_is_the_unrolled_gradient_at_convergence(problem, name):
    found = gradient(AT_THE_POINT[name], *problem, 60)
    assert distance(found, unrolled(*problem, 60)) < 1e-8
    far = distance(gradient(AT_THE_POINT[name], *problem, 1), unrolled(*problem, 1))
    assert far > 1e-2  # before it has converged, it is the gradient of something else


def test_the_error_of_k_steps_decays_geometrically(problem):
    exact = unrolled(*problem, 60)
    errors = [distance(gradient(KStepAdjoint(k), *problem, 60), exact) for k in (1, 4, 7, 10, 13)]
    ratios = np.divide(errors[1:], errors[:-1])
    assert (ratios < 0.7**3).all() and (ratios > 0.05**3).all()
    assert distance(gradient(OneStepAdjoint(), *problem, 60), gradient(KStepAdjoint(1), *problem, 60)) == 0


@pytest.mark.parametrize("adjoint", [*EXACT.values(), *AT_THE_POINT.values(), OneStepAdjoint()], ids=[*EXACT, *AT_THE_POINT, "one step"])
def test_all_run_the_same_steps(problem, adjoint):
    args, carry = problem
    for _ in range(9):
        carry = contraction(args, carry)
    assert distance(adjoint.run(contraction, *problem, 9), carry) < 1e-14


def test_blocks_are_near_the_root_and_waste_little():
    for length in range(1, 200):
        size = block_size(length)
        assert 1 <= size <= length and -length % size <= 4
        assert size <= 2 * np.ceil(np.sqrt(length)) and length / size <= 2 * np.ceil(np.sqrt(length)) + 1


def test_checkpoints_keep_few_carries():
    big = jnp.ones((64, 1024))

    def memory(run, length):
        total = lambda a, x: run(lambda a, x: jnp.tanh(a * x) + x, a, x, length).sum()  # noqa: E731
        return jax.jit(jax.grad(total)).lower(1.0, big).compile().memory_analysis().temp_size_in_bytes

    keep_all = RecursiveCheckpointAdjoint(keep_all=True).run
    assert memory(checkpointed, 64) < 0.5 * memory(keep_all, 64)
    assert memory(checkpointed, 64) < 3 * memory(checkpointed, 8)


def test_what_a_step_closes_over_is_no_argument(problem):
    # an implicit gradient sees `args` only; a closure over a traced array would be an error of JAX, never a silent zero
    args, carry = problem
    with pytest.raises(Exception, match=r"[Cc]losed|differentiation|Tracer"):
        jax.grad(lambda s: ImplicitAdjoint().run(lambda a, c: (s * c[0], c[1]), args, carry, 5)[0].sum())(0.5)


# --- inside optimistix ---


def fixed_point(adjoint):
    f = lambda x, a: jnp.tanh(a * x[::-1]) + a  # noqa: E731
    return lambda a: optx.fixed_point(f, optx.FixedPointIteration(1e-10, 1e-10), jnp.ones(3), a, adjoint=adjoint, max_steps=500).value.sum()


def least_squares(adjoint):
    f = lambda x, a: jnp.concatenate([a * x - 1, 0.1 * jnp.square(x)])  # noqa: E731
    solver = optx.GaussNewton(1e-8, 1e-8)
    return lambda a: optx.least_squares(f, solver, jnp.ones(3), a, adjoint=adjoint, max_steps=100).value.sum()


def minimise(adjoint):
    f = lambda x, a: jnp.square(a * x - 1).sum() + 0.1 * jnp.square(x).sum()  # noqa: E731
    solver = optx.BFGS(1e-6, 1e-6)
    return lambda a: optx.minimise(f, solver, jnp.ones(3), a, adjoint=adjoint, max_steps=300).value.sum()


@pytest.mark.parametrize("solve", [fixed_point, least_squares, minimise])
@pytest.mark.parametrize("adjoint", [RecursiveCheckpointAdjoint(), KStepAdjoint(40), ImplicitAdjoint(tolerance=1e-10)], ids=str)
def test_inside_optimistix(x64, solve, adjoint):
    a = jnp.array([0.5, 0.3, 0.4])
    exact = jax.grad(solve(optx.ImplicitAdjoint()))(a)
    np.testing.assert_allclose(jax.grad(solve(adjoint))(a), exact, atol=1e-5)


@pytest.mark.parametrize("solve", [fixed_point, least_squares])
def test_few_steps_inside_optimistix_come_near(x64, solve):
    a = jnp.array([0.5, 0.3, 0.4])
    exact = jax.grad(solve(optx.ImplicitAdjoint()))(a)
    errors = [float(jnp.abs(jax.grad(solve(adjoint))(a) - exact).max()) for adjoint in (OneStepAdjoint(), KStepAdjoint(3), KStepAdjoint(6))]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05 * float(jnp.abs(exact).max())


def test_a_solve_of_fewer_than_k_steps_has_the_whole_gradient(x64):
    def solve(a, adjoint):
        solver = optx.FixedPointIteration(1e-3, 1e-3)
        return optx.fixed_point(lambda x, a: 0.1 * x + a, solver, a, a, adjoint=adjoint, max_steps=50).value

    exact = jax.grad(solve)(1.0, RecursiveCheckpointAdjoint())
    np.testing.assert_allclose(jax.grad(solve)(1.0, KStepAdjoint(30)), exact, rtol=1e-12)


# --- names ---


@pytest.mark.parametrize("kind", ADJOINTS)
def test_every_adjoint_is_a_configuration(kind):
    adjoint = ADJOINTS[kind]()
    assert isinstance(adjoint, Adjoint) and isinstance(adjoint, optx.AbstractAdjoint)
    assert from_dict(type(adjoint), to_dict(adjoint)) == adjoint and hash(adjoint) == hash(ADJOINTS[kind]())


def test_names_map_to_optimistix():
    kept = to_optimistix_adjoint(diffrax.RecursiveCheckpointAdjoint(checkpoints=8))
    assert type(kept) is optx.RecursiveCheckpointAdjoint and kept.checkpoints == 8
    assert type(to_optimistix_adjoint("ImplicitAdjoint")) is optx.ImplicitAdjoint
    assert type(to_optimistix_adjoint(diffrax.ImplicitAdjoint)) is optx.ImplicitAdjoint
    assert to_optimistix_adjoint(KStepAdjoint(3)).k == 3
    assert isinstance(to_optimistix_adjoint("OneStepAdjoint"), OneStepAdjoint)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (diffrax.DirectAdjoint(), "DirectAdjoint"),
        ("BacksolveAdjoint", "backwards"),
        ("ImplicitAdjont", "did you mean 'ImplicitAdjoint'"),
    ],
)
def test_names_without_a_twin_are_errors(spec, message):
    with pytest.raises(ConfigError, match=message):
        to_optimistix_adjoint(spec)


@pytest.mark.parametrize(("kind", "options"), [("k_step", {"k": 0}), *(("implicit", o) for o in ({"max_steps": 0}, {"tolerance": 0.0}))])
def test_bad_options_are_errors(kind, options):
    with pytest.raises(ConfigError, match="expected"):
        ADJOINTS[kind](**options)


@pytest.mark.parametrize("kind", ADJOINTS)
def test_no_steps_are_an_error(kind):
    with pytest.raises(ConfigError, match="length > 0"):
        ADJOINTS[kind]().run(lambda a, c: c, 1.0, 1.0, 0)
