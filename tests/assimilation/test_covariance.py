"""Every covariance is its own matrix, with an exact root, inverse and determinant; what is none is refused."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from tests.slow import mostly_slow
from vardax_flax.assimilation import Blocks, Diagonal, Kronecker, LowRankPlusDiagonal, Matern, as_covariance, dense
from vardax_flax.core.config import ConfigError


def spd(n, seed=0):
    a = np.random.default_rng(seed).normal(size=(n, n + 2))
    return a @ a.T


CASES = {
    "diagonal": lambda: Diagonal(jnp.array([0.5, 2.0, 9.0])),
    "dense": lambda: dense(spd(4)),
    "low rank plus diagonal": lambda: LowRankPlusDiagonal(jnp.array([0.5, 1.0, 2.0, 0.1]), np.random.default_rng(1).normal(size=(4, 2))),
    "low rank of zeros": lambda: LowRankPlusDiagonal(jnp.ones(3), jnp.zeros((3, 2))),
    "Kronecker": lambda: Kronecker(dense(spd(3)), Diagonal(jnp.array([1.0, 4.0]))),
    "blocks": lambda: Blocks([dense(spd(2)), Diagonal(jnp.array([1.0, 4.0]))]),
    "Matérn in one dimension": lambda: Matern((8,), length=1.5, sd=2.0),
    "Matérn in two": lambda: Matern((4, 6), length=2.0, smoothness=0.5),
}


@mostly_slow("name", CASES, ["dense", "blocks", "Kronecker", "low rank plus diagonal", "Matérn in one dimension"])
def test_a_covariance_is_its_matrix(x64, name):
    covariance = CASES[name]()
    matrix = np.asarray(covariance.as_matrix())
    n = covariance.size
    v = np.random.default_rng(2).normal(size=n)
    root = np.asarray(jax.vmap(covariance.root, out_axes=1)(jnp.eye(n)))
    np.testing.assert_allclose(root @ root.T, matrix, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    np.testing.assert_allclose(covariance.whiten(covariance.root(jnp.asarray(v))), v, rtol=1e-9)
    np.testing.assert_allclose(covariance.solve(jnp.asarray(v)), np.linalg.solve(matrix, v), rtol=1e-8)
    np.testing.assert_allclose(covariance.log_det, np.linalg.slogdet(matrix)[1], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(covariance.diagonal(), np.diag(matrix), rtol=1e-10)
    operator = covariance.as_lineax()
    assert lx.is_positive_semidefinite(operator)
    np.testing.assert_allclose(operator.mv(jnp.asarray(v)), matrix @ v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_observed_is_cut_out_of_a_covariance(x64, name):
    covariance = CASES[name]()
    mask = (np.arange(covariance.size) % 3 != 1).astype(float)
    whitener, log_det = covariance.whitener(jnp.asarray(mask))
    whitener = np.diag(whitener) if whitener.ndim == 1 else np.asarray(whitener)
    seen = mask == 1
    block = np.asarray(covariance.as_matrix())[np.ix_(seen, seen)]
    v = np.random.default_rng(3).normal(size=covariance.size) * mask
    np.testing.assert_allclose(np.sum((whitener @ v) ** 2), v[seen] @ np.linalg.solve(block, v[seen]), rtol=1e-9)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(block)[1], rtol=1e-10, atol=1e-12)


def test_a_matern_field_has_its_variance_everywhere_and_forgets_with_distance(x64):
    matrix = np.asarray(Matern((32,), length=2.0, sd=3.0).as_matrix())
    np.testing.assert_allclose(np.diag(matrix), 9.0)
    assert (np.diff(matrix[0, :16]) < 0).all()


def test_whatever_a_user_passes_becomes_the_same_covariance(x64):
    values = (4.0, [4.0, 4.0, 4.0], 4 * np.eye(3), Diagonal(jnp.full(3, 4.0)), lx.DiagonalLinearOperator(jnp.full(3, 4.0)),
              lx.MatrixLinearOperator(4 * jnp.eye(3), lx.positive_semidefinite_tag))  # fmt: skip
    for value in values:
        np.testing.assert_allclose(as_covariance(value, 3, "R").as_matrix(), 4 * np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lx.MatrixLinearOperator(np.eye(3)), "tagged positive semidefinite"),
        (np.diag([1.0, -1.0, 1.0]), "smallest eigenvalue of -1"),
        ([[1.0, 0.5], [0.0, 1.0]], "symmetric"),
        (np.eye(2), "size 3"),
        (0.0, "positive"),
        ([1.0, np.nan, 1.0], "positive, finite"),
        (np.ones((3, 2)), "square"),
        (np.ones((2, 2, 2)), "variance, variances or a matrix"),
    ],
)
def test_what_is_no_covariance_is_refused_by_name(value, says):
    with pytest.raises(ConfigError, match=says):
        as_covariance(value, 3, "background_cov")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Diagonal(jnp.array([1.0, 0.0])),
        lambda: Diagonal(jnp.array([1.0, np.nan])),
        lambda: LowRankPlusDiagonal(-jnp.ones(3), jnp.ones((3, 1))),
        lambda: Diagonal(jnp.ones((2, 2))),
        lambda: LowRankPlusDiagonal(jnp.ones(3), jnp.ones((2, 1))),
        lambda: Blocks([]),
    ],
)
def test_a_covariance_of_parts_that_are_none_is_refused(make):
    with pytest.raises(ConfigError, match="expected .* got .* do "):
        make()


def test_variances_may_be_whole_numbers():
    assert Diagonal(np.array([1, 4])).root(jnp.ones(2)).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "arguments", [{"length": 0.0}, {"length": 1.0, "sd": -1.0}, {"length": 1.0, "smoothness": 0.0}, {"length": 1.0, "sd": np.nan}]
)
def test_a_field_needs_positive_scales(arguments):
    with pytest.raises(ConfigError, match="positive"):
        Matern((8,), **arguments)
