"""What every registered flow family promises: a bijection, and the log-determinant of its Jacobian. A new one is picked up by itself."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.perturb import noise, perturb
from tests.slow import mostly_slow
from vardax_flax.flows import FAMILIES, ConditionalGaussian, build_flow
from vardax_flax.flows.monotone import LogisticMixture
from vardax_flax.flows.spline import CircularShift, RationalQuadraticSpline
from vardax_flax.nn import MaskedConditioner

C = 3
BOUND = 2.5
ROUNDINGS = 20  # that a number suffers on its way through a flow and back


def stack(family, dim, layers=3, mixing=None):
    return build_flow(family, dim, C, layers=layers, bins=5, bound=BOUND, width=8, depth=2, mixing=mixing, rngs=nnx.Rngs(0))


def flow(name, dim, scale=0.08):
    return _flow(name, dim, scale, jax.config.jax_enable_x64)


@functools.cache
def _flow(name, dim, scale, double):
    if name.startswith("gaussian"):
        made = ConditionalGaussian(dim, C, full=name == "gaussian-full", width=8, depth=2, rngs=nnx.Rngs(0))
    else:
        family, _, mixing = name.partition("-")
        made = stack(family, dim, mixing=mixing or None)
    return perturb(made, scale)


families = mostly_slow("family", FAMILIES, ["spline"])
names = mostly_slow("name", ["gaussian-full", "gaussian-diagonal", *FAMILIES, "spline-lu"], ["gaussian-full", "spline"])
dims = mostly_slow("dim", [2, 1, 5, 40])


def points(n, dim, scale=1.5):
    """Most of them within the bound, some outside."""
    return scale * noise(n, dim, seed=1), noise(n, C, seed=2)


@names
@dims
def test_log_det_is_that_of_the_jacobian_and_the_way_back_is_exact(name, dim, x64):
    made = flow(name, dim)
    x, context = points(32, dim)

    def both_ways(x, c):
        z, forward = made.forward(x, c)
        back, inverse = made.inverse(z, c)
        jacobians = jax.jacfwd(lambda x: made.forward(x, c)[0])(x), jax.jacfwd(lambda z: made.inverse(z, c)[0])(z)
        return z, back, forward, inverse, *jacobians

    z, back, forward, inverse, jacobian, jacobian_back = map(np.asarray, jax.jit(jax.vmap(both_ways))(x, context))
    assert abs(z - x).max() > 0.1
    np.testing.assert_allclose(back, x, atol=1e-9)
    np.testing.assert_allclose(forward, np.linalg.slogdet(jacobian)[1], atol=1e-8)
    np.testing.assert_allclose(inverse, np.linalg.slogdet(jacobian_back)[1], atol=1e-8)
    np.testing.assert_allclose(inverse, -forward, atol=1e-8)


@names
@mostly_slow("dim", [5, 1])
def test_the_way_back_is_close_in_single_precision(name, dim):
    """As close as z tells x: each direction rounds its numbers some dozens of times, and ∂x/∂z passes on what z lost.

    |x − f⁻¹(f(x))|ᵢ ≤ k ε (max(1, |xᵢ|) + Σⱼ |∂xᵢ/∂zⱼ| max(1, |zⱼ|)): about 1e-5 where slopes are about 1, more where some are small,
    which no implementation can help; no row is left out. Measured: k = 8 at most.
    """
    x, context = points(256, dim)
    made = flow(name, dim)
    z, _ = jax.jit(made.forward)(x, context)
    jacobian = jax.jit(jax.vmap(lambda z, c: jax.jacfwd(lambda z: made.inverse(z, c)[0])(z)))(z, context)
    back, z, x, jacobian = map(np.asarray, (jax.jit(made.inverse)(z, context)[0], z, x, jacobian))
    passed_on = np.einsum("nij,nj->ni", abs(jacobian), np.maximum(1, abs(z)))
    error = abs(back - x) / (np.finfo(np.float32).eps * (np.maximum(1, abs(x)) + passed_on))
    assert error.max() < ROUNDINGS
    assert abs(z - x).max() > 0.05


@names
@dims
def test_gradients_of_draws_are_those_of_differences(name, dim, x64):
    """By parameters, context and noise together, row by row, inside and outside the bound: also where the inverse is a bisection."""
    # forty components that lean on each other as much as five do grow by 10²⁰ from the first to the last
    graphdef, params, rest = nnx.split(flow(name, dim, 0.08 if dim <= 5 else 0.02), nnx.Param, ...)
    n, h = 24, 1e-6
    z, context = points(n, dim, scale=3.0)
    assert (abs(z) > BOUND).any() and (abs(z) < BOUND).any()
    directions = jax.tree.map(lambda leaf: noise(*leaf.shape, seed=3), (params, context, z))
    weight = noise(dim, seed=4)

    def number(params, context, z):
        x, log_det = nnx.merge(graphdef, params, rest).inverse(z, context)
        return x @ weight + log_det

    def slopes(context, z, d_context, d_z):
        at, along = (params, context, z), (directions[0], d_context, d_z)
        gradient = jax.grad(number, argnums=(0, 1, 2))(*at)
        moved = lambda step: number(*jax.tree.map(lambda a, d: a + step * d, at, along))  # noqa: E731
        near, wide = ((moved(step) - moved(-step)) / (2 * step) for step in (h, 2 * h))
        parts = jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, along))
        return sum(parts), near, (4 * near - wide) / 3

    by_gradient, near, extrapolated = map(np.asarray, jax.jit(jax.vmap(slopes))(context, z, *directions[1:]))
    # Richardson's is the better one, but for a knot within the wider step
    by_difference = np.where(abs(by_gradient - near) < abs(by_gradient - extrapolated), near, extrapolated)
    assert abs(by_difference).min() > 1e-3
    np.testing.assert_allclose(by_gradient, by_difference, rtol=1e-5, atol=1e-6)


@names
def test_the_context_matters_and_broadcasts_over_draws(name, x64):
    made = flow(name, 2)
    x, context = points(4, 2)
    draws = np.broadcast_to(x, (4, 4, 2))  # row i of contexts, draw j
    repeated = np.repeat(context[:, None], 4, axis=1)
    both = jax.jit(lambda x, c: (made.forward(x, c), made.inverse(x, c)))
    shared, apart = (jax.tree.map(np.asarray, both(draws, c)) for c in (context[:, None], repeated))
    for (z, log_det), (same, same_log_det) in zip(shared, apart, strict=True):
        np.testing.assert_allclose(z, same, atol=1e-12)
        np.testing.assert_allclose(np.broadcast_to(log_det, (4, 4)), same_log_det, atol=1e-12)
        assert abs(z[0] - z[1]).max() > 1e-3


@names
def test_far_values_are_finite_both_ways(name):
    made = flow(name, 2)
    x = jnp.array([[1e6, -1e6], [BOUND, -BOUND], [0.0, 1e6]])
    context = points(3, 2)[1]

    def total(x, context):
        parts = (*made.forward(x, context), *made.inverse(x, context))
        return sum(part.sum() for part in parts), parts

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(x, context)
    assert all(np.isfinite(part).all() for part in (*values, *gradients))


@names
def test_a_bad_row_stays_alone(name):
    made = flow(name, 2)
    x, context = points(8, 2)
    both = jax.jit(lambda x, c: jnp.concatenate([*made.forward(x, c)[:1], *made.inverse(x, c)[:1]], axis=-1))
    bad = np.asarray(both(x.at[1].set(jnp.nan).at[2].set(1e30), context.at[3].set(jnp.inf).at[5].set(-1e30)))
    good = np.array([0, 4, 6, 7])
    np.testing.assert_array_equal(bad[good], np.asarray(both(x, context))[good])
    assert np.isnan(bad[1]).all()


@families
def test_a_program_does_not_grow_with_its_layers(family):
    """Nor then does the time to compile it: the layers are scanned, for the gradient of the density and for draws."""
    x, context = points(4, 2)

    def lines(layers, function):
        made = stack(family, 2, layers=layers)
        graphdef, params = nnx.split(made)
        return jax.jit(lambda params: function(nnx.merge(graphdef, params))).lower(params).as_text().count("\n")

    def gradient(made):
        graphdef, params, rest = nnx.split(made, nnx.Param, ...)
        return jax.grad(lambda params: sum(part.sum() for part in nnx.merge(graphdef, params, rest).forward(x, context)))(params)

    for function in (gradient, lambda made: made.inverse(x, context)):
        few, many = lines(4, function), lines(16, function)
        assert few > 50
        assert many <= 1.02 * few


@mostly_slow("dim", [3, 2, 5])
@families
def test_two_layers_move_every_component(family, dim, x64):
    made = perturb(stack(family, dim, layers=2))
    x, context = points(16, dim, scale=1.0)
    z, _ = jax.jit(made.forward)(x, context)
    distance = abs(np.asarray(z)[:, :, None] - np.asarray(x)[:, None, :])  # every output against every input
    assert (distance.max(axis=0) > 1e-3).all()


def raw_parameters(shape, bins=6):
    return noise(3 * bins - 1, *shape)


def test_the_spline_agrees_with_the_one_of_distrax(x64):
    raw, bins = raw_parameters((64,)), 6
    sizes, slopes = raw[: 2 * bins].T, raw[2 * bins :].T
    ignored = jnp.zeros((64, 1))
    theirs = distrax.RationalQuadraticSpline(
        jnp.concatenate([sizes, ignored, slopes, ignored], axis=-1), -BOUND, BOUND, boundary_slopes="identity",
        min_bin_size=2e-3 * BOUND, min_knot_slope=1e-3,
    )  # fmt: skip
    ours = RationalQuadraticSpline(raw, BOUND)
    x = jnp.linspace(-1.2 * BOUND, 1.2 * BOUND, 64)
    for direction in ("forward_and_log_det", "inverse_and_log_det"):
        got, expected = (jax.jit(getattr(spline, direction))(x) for spline in (ours, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), got, expected)


def test_the_spline_is_monotone_the_identity_outside_and_at_zero_parameters(x64):
    x = jnp.linspace(-2 * BOUND, 2 * BOUND, 2001)
    raw = 3 * raw_parameters(())
    spline = jax.jit(lambda raw: RationalQuadraticSpline(raw[:, None], BOUND).forward_and_log_det(x))
    y, log_det = map(np.asarray, spline(raw))
    outside = abs(x) > BOUND
    assert (np.diff(y) > 0).all()
    assert (y[outside] == x[outside]).all() and (log_det[outside] == 0).all()
    identity, log_det = spline(jnp.zeros_like(raw))
    np.testing.assert_allclose(identity, x, atol=1e-12)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)


def test_the_spline_survives_extreme_parameters():
    """Steep and flat knots side by side: finite values and gradients, and a way back as good as the slopes allow."""
    raw, x = 20 * raw_parameters((200,)), jnp.linspace(-BOUND, BOUND, 200)

    def total(raw, x):
        y, log_det = RationalQuadraticSpline(raw, BOUND).forward_and_log_det(x)
        back, log_det_back = RationalQuadraticSpline(raw, BOUND).inverse_and_log_det(jax.lax.stop_gradient(y))
        return sum(part.sum() for part in (y, log_det, back, log_det_back)), (back, log_det)

    (value, (back, log_det)), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(raw, x)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_allclose(abs(back - x) * np.exp(np.minimum(log_det, 0)), 0, atol=1e-4)


@pytest.mark.slow
def test_the_spline_is_finite_at_every_knot():
    """Where a point is past its bin by a rounding, and the bin is steep with flat ends."""
    raw = 6 * raw_parameters((300,))
    sizes = jax.nn.softmax(raw[:6], axis=0)
    knots = 2 * BOUND * jnp.cumsum(1e-3 + (1 - 6e-3) * sizes, axis=0)[:-1] - BOUND
    x = knots + 2e-7 * jnp.arange(-6, 7).reshape(-1, 1, 1)
    for direction in ("forward_and_log_det", "inverse_and_log_det"):
        both = jax.jit(jax.value_and_grad(lambda raw, x, direction=direction: sum(
            part.sum() for part in getattr(RationalQuadraticSpline(raw[:, None, None], BOUND), direction)(x)
        ), argnums=(0, 1)))  # fmt: skip
        assert all(np.isfinite(part).all() for part in jax.tree.leaves(both(raw, x)))


def test_the_slope_at_a_knot_is_one_where_the_spline_is_the_identity(x64):
    x, raw = jnp.array([-BOUND, 0.0, BOUND]), jnp.zeros((17, 1))
    for direction in ("forward", "inverse"):
        slope = jax.jit(jax.grad(lambda x, direction=direction: getattr(RationalQuadraticSpline(raw, BOUND), direction)(x).sum()))(x)
        np.testing.assert_allclose(slope, 1, atol=1e-9)


def test_draws_between_far_components_do_not_hang_on_the_rounding():
    """A mixture of two narrow components has no slope between them but the one it is given."""
    raw = jnp.array([0.0, 0.0, -2.0, 2.0, -4.0, -4.0])[:, None]
    z = jnp.linspace(-1e-3, 1e-3, 101)
    mixture = LogisticMixture(raw, 6.0)
    x, log_det = map(np.asarray, jax.jit(mixture.inverse_and_log_det)(z))
    np.testing.assert_allclose(x, 1e3 * z, atol=2e-3)
    np.testing.assert_allclose(log_det, np.log(1e3), atol=1e-3)
    np.testing.assert_allclose(mixture.forward(jnp.asarray(x)), z, atol=1e-6)


@mostly_slow(("dim", "width"), [(5, 8), (1, 8), (2, 8), (6, 3)])
def test_a_component_sees_all_before_it_and_none_after_it_and_the_context_bent(dim, width, x64):
    made = perturb(MaskedConditioner(dim, C, 2, width=width, depth=2, rngs=nnx.Rngs(0)), 0.3)
    net = lambda x, context: made(made.given(context), x).T  # noqa: E731
    x, context, step = noise(dim), noise(C, seed=2), 0.5 * noise(C, seed=3)
    seen = np.asarray(jnp.abs(jax.jacfwd(lambda x: net(x, context))(x)).max(axis=1)) > 1e-9
    np.testing.assert_array_equal(seen, np.tri(dim, k=-1) > 0)
    second = net(x, context + step) - 2 * net(x, context) + net(x, context - step)
    assert (jnp.abs(second).max(axis=-1) > 1e-4).all()


def test_the_circle_is_half_open(x64):
    turn, x = CircularShift(jnp.array(1.0), 6.0), jnp.array([5.0, -6.0, 6.0, 7.0, 5.999])
    y, _ = turn.forward_and_log_det(x)
    np.testing.assert_allclose(turn.inverse_and_log_det(y)[0], x, atol=1e-12)
    assert (y[2:4] == x[2:4]).all() and float(y[0]) == -6.0
