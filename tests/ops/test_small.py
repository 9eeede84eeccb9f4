"""Tiny linear algebra against LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops.small import cholesky_solve, least_squares, matvec, principal_axes, solve_upper, sum_of_squares, unit_lower

sizes = pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
all_sizes = pytest.mark.parametrize("n", [1, 3, 6, 12])  # the last by scans
N = 20


def matrices(m, n, condition=1.0, seed=0):
    """Random ones with singular values between 1 and 1 / condition."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((N, m, n))
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    return (u * np.geomspace(1, 1 / condition, n)) @ vt


@all_sizes
def test_least_squares_is_that_of_lapack(n, x64):
    a, b = matrices(15, n, 100.0), np.random.default_rng(1).standard_normal((N, 15))
    x, r = jax.jit(jax.vmap(least_squares))(a, b)
    np.testing.assert_allclose(x, [np.linalg.lstsq(one, right)[0] for one, right in zip(a, b, strict=True)], rtol=1e-8)
    np.testing.assert_allclose(np.swapaxes(r, 1, 2) @ r, np.swapaxes(a, 1, 2) @ a, atol=1e-14)
    assert (np.diagonal(r, axis1=1, axis2=2) > 0).all() and abs(np.tril(r, -1)).max() == 0


def test_least_squares_stands_what_the_normal_equations_do_not():
    """In single precision, at a condition number whose square is beyond it."""
    a = matrices(8, 3, 1e4)
    truth = np.random.default_rng(1).standard_normal((N, 3))
    right = np.einsum("nij,nj->ni", a, truth)
    x, _ = jax.vmap(least_squares)(jnp.asarray(a, jnp.float32), jnp.asarray(right, jnp.float32))
    assert abs(x - truth).max() < 0.02
    squared = jax.vmap(lambda a, b: cholesky_solve(a.T @ a, a.T @ b)[0])(jnp.asarray(a, jnp.float32), jnp.asarray(right, jnp.float32))
    assert not abs(squared - truth).max() < 0.5


@all_sizes
def test_triangular_solves_are_those_of_lapack(n, x64):
    upper = np.triu(matrices(n, n, 10.0)) + 2 * np.eye(n)
    right = np.random.default_rng(1).standard_normal((N, n, 4))
    np.testing.assert_allclose(jax.jit(jax.vmap(solve_upper))(upper, right), np.linalg.solve(upper, right), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 5), (3, 8), (12, 3), (3, 12)])  # the last two by a library
def test_products_and_sums_written_out_are_those_of_numpy(m, n, x64):
    rng = np.random.default_rng(0)
    a, x = rng.standard_normal((4, 1, m, n)), rng.standard_normal((1, N, n))
    product = jax.jit(matvec)(a, x)
    assert product.shape == (4, N, m)
    np.testing.assert_allclose(product, np.einsum("...ij,...j->...i", a, x), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(sum_of_squares(jnp.asarray(x)), np.square(x).sum(-1), rtol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 5, 12])  # the last at once
def test_entries_below_the_diagonal_come_row_by_row(n, x64):
    below = np.random.default_rng(0).standard_normal((3, N, n * (n - 1) // 2))
    expected = np.broadcast_to(np.eye(n), (3, N, n, n)).copy()
    expected[..., *np.tril_indices(n, -1)] = below
    np.testing.assert_array_equal(jax.jit(unit_lower, static_argnums=1)(below, n), expected)


@sizes
def test_cholesky_solve_is_that_of_lapack(n, x64):
    a, b = matrices(n + 2, n, 30.0), np.random.default_rng(1).standard_normal((N, n))
    spd = np.swapaxes(a, 1, 2) @ a
    x, quadratic = jax.jit(jax.vmap(cholesky_solve))(spd, b)
    np.testing.assert_allclose(x, np.linalg.solve(spd, b[..., None])[..., 0], rtol=1e-9)
    np.testing.assert_allclose(quadratic, (x * b).sum(-1), rtol=1e-9)
    assert np.isnan(cholesky_solve(-jnp.eye(n), jnp.ones(n))[0]).any()


@sizes
@pytest.mark.parametrize("condition", [1.0, 1e3])
def test_principal_axes_are_those_of_lapack(n, condition, x64):
    a = matrices(n, n, condition)
    axes, values = jax.jit(jax.vmap(principal_axes))(a)
    np.testing.assert_allclose(values, np.linalg.svd(a, compute_uv=False)[:, ::-1], rtol=1e-9)
    np.testing.assert_allclose(np.swapaxes(axes, 1, 2) @ axes, np.broadcast_to(np.eye(n), axes.shape), atol=1e-12)
    scaled = a @ axes / np.asarray(values)[:, None, :]
    np.testing.assert_allclose(np.swapaxes(scaled, 1, 2) @ scaled, np.broadcast_to(np.eye(n), axes.shape), atol=1e-8)
    largest = np.take_along_axis(np.asarray(axes), abs(axes).argmax(axis=1)[:, None], axis=1)
    assert (largest > 0).all()


def test_principal_axes_of_a_diagonal_matrix_are_the_unit_vectors():
    axes, values = principal_axes(jnp.diag(jnp.array([3.0, 1.0, 2.0])))
    np.testing.assert_array_equal(values, [1, 2, 3])
    np.testing.assert_array_equal(axes, np.eye(3)[:, [1, 2, 0]])


@pytest.mark.parametrize("n", [40, 64])
def test_principal_axes_of_many_columns_are_found_in_single_precision(n):
    """At a condition number of 10⁴, where rotations take longest to converge."""
    a = jnp.asarray(matrices(n, n, 1e4)[:4], jnp.float32)
    axes, values = jax.jit(jax.vmap(principal_axes))(a)
    np.testing.assert_allclose(np.swapaxes(axes, 1, 2) @ axes, np.broadcast_to(np.eye(n), axes.shape), atol=1e-5)
    turned = np.asarray(a, np.float64) @ np.asarray(axes, np.float64)
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    np.testing.assert_allclose(np.swapaxes(turned, 1, 2) @ turned, np.broadcast_to(np.eye(n), axes.shape), atol=5e-3)
    np.testing.assert_allclose(values, np.linalg.svd(np.asarray(a, np.float64), compute_uv=False)[:, ::-1], rtol=1e-3)


def test_axes_far_narrower_than_the_widest_keep_their_derivatives():
    """In single precision, against double."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    a, direction = (np.diag([1.0, 3.0, 1e4]) @ part for part in (turn, rng.standard_normal((3, 3))))

    def moved(dtype):
        return jax.jvp(lambda a: principal_axes(a)[0], (jnp.asarray(a, dtype),), (jnp.asarray(direction, dtype),))[1]

    single = np.asarray(moved(np.float32))
    with jax.enable_x64(True):
        double = np.asarray(moved(np.float64))
    assert abs(double).max() > 0.1
    np.testing.assert_allclose(single, double, rtol=0.05, atol=0.01)  # the matrix itself is known to 1e-3 of its smallest part


def test_principal_axes_have_derivatives_in_both_modes(x64):
    """As finite differences; and numbers where two values are the same."""
    a, direction = jnp.asarray(matrices(4, 4, 10.0)[0]), jnp.asarray(np.random.default_rng(1).standard_normal((4, 4)))
    _, forward = jax.jvp(principal_axes, (a,), (direction,))
    h = 1e-6
    ends = [principal_axes(a + sign * h * direction) for sign in (1, -1)]
    for exact, plus, minus in zip(forward, *ends, strict=True):
        np.testing.assert_allclose(exact, (plus - minus) / (2 * h), atol=1e-6)
    weights = np.random.default_rng(2).standard_normal((4, 4))
    gradient = jax.grad(lambda a: (weights * principal_axes(a)[0]).sum())(a)
    np.testing.assert_allclose((gradient * direction).sum(), (weights * forward[0]).sum(), rtol=1e-9)
    assert np.isfinite(jax.jacrev(principal_axes)(jnp.eye(3))[0]).all()
