"""What every registered head promises: an answer, draws, a normalised density as far as it has them, rows that do not see each other."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.stats import multivariate_normal

from tests.perturb import noise, perturb
from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.core.interfaces import Decoder, DensityHead, Head
from vardax_flax.flows import FAMILIES
from vardax_flax.heads import HEADS, FlowHeadConfig, HeadConfig, RegressionHeadConfig
from vardax_flax.nn import UNetConfig

C = 3  # features of the context
LINE = UNetConfig(grid=(1,), channels=(4,), depth=(1,))  # the grid is made as long as the state
SQUARE = UNetConfig(grid=(1, 1), channels=(4,), depth=(1,), periodic=False)
SMALL = {"width": 8, "layers": 3, "bins": 5, "rank": 2}
VARIANTS = {
    "regression": [{"covariance": c} for c in ("full", "diagonal", "low_rank")],
    "flow": [{"family": f} for f in ("gaussian", "gaussian_diag", *FAMILIES)],
    "point": [{"loss": "squared"}, {"loss": "absolute"}],
    # the other samplers draw from the density of their ODE only as the network nears the truth
    "score": [{"sampler": "ode"}, {"sampler": "ode", "net": LINE}, {"sampler": "ode", "net": SQUARE}],
}


def _name(value):
    return f"{len(value.grid)}d" if isinstance(value, UNetConfig) else str(value)


def configs():
    """One small configuration for each variant of each registered head; a new head is taken with its defaults.

    The first variant of each is quick but for the score, whose density is an ODE.
    """
    for kind, cls in HEADS.items():
        names = {f.name for f in dataclasses.fields(cls)}
        small = {name: value for name, value in SMALL.items() if name in names}
        for i, variant in enumerate(VARIANTS.get(kind, [{}])):
            marks = [pytest.mark.slow] if i or kind == "score" else []
            yield pytest.param(cls(**small, **variant), id="-".join([kind, *map(_name, variant.values())]), marks=marks)


heads = pytest.mark.parametrize("config", list(configs()))
dims = mostly_slow("dim", [2, 1, 5])


@functools.cache
def _build(config, dim, double):
    if getattr(config, "net", None) is not None:
        config = dataclasses.replace(config, net=dataclasses.replace(config.net, grid=(*config.net.grid[1:], dim)))
    return perturb(config.build(dim, C, nnx.Rngs(0)), 0.1)


def build(config, dim, capability=DensityHead):
    head = _build(config, dim, jax.config.jax_enable_x64)
    if not isinstance(head, capability):
        pytest.skip(f"no {capability.__name__}")
    return head


def log_prob(head, x, context):
    return np.asarray(jax.jit(head.log_prob)(x, context))


def sample(head, context, seed, n):
    return np.asarray(jax.jit(head.sample, static_argnums=2)(context, jax.random.key(seed), n))


def draw(*shape, seed=1):
    return noise(*shape, seed=seed)


@heads
@pytest.mark.parametrize(("dim", "n"), [(1, 4001), (2, 161)])
def test_the_density_integrates_to_one(config, dim, n, x64):
    head = build(config, dim)
    draws = sample(head, draw(2, C), 0, 2000)
    center, spread = draws.mean(1), draws.std(1)
    axis = np.linspace(-9, 9, n)
    grid = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    points = center[:, None] + spread[:, None] * grid
    mass = np.exp(log_prob(head, points, draw(2, C)[:, None])).sum(-1) * np.prod(spread * (axis[1] - axis[0]), axis=-1)
    np.testing.assert_allclose(mass, 1, atol=2e-3)


@heads
@dims
def test_draws_follow_the_density(config, dim, x64):
    """E_q[∇ₓ log q] = 0 and E_q[x · ∇ₓ log q] = −1 for every component (Stein), each within five standard errors."""
    head, n = build(config, dim), 10_000
    context = draw(C)
    x = sample(head, context, 3, n)
    score = np.asarray(jax.jit(jax.grad(lambda x: head.log_prob(x, context).sum()))(x))
    for statistic in (score, x * score + 1):
        error = statistic.std(0) / np.sqrt(n)
        assert (abs(statistic.mean(0)) < 5 * error).all()
        assert (error < 1).all()


@heads
def test_a_histogram_of_draws_is_the_density(config, x64):
    head, n = build(config, 1), 20000
    context = draw(C)
    x = sample(head, context, 3, n)[:, 0]
    edges = np.quantile(x[: n // 2], np.linspace(0.05, 0.95, 10))
    fine = np.linspace(edges[:-1], edges[1:], 201)  # (201, 9)
    density = np.exp(log_prob(head, fine[..., None], context))
    expected = np.trapezoid(density, fine, axis=0)
    observed = np.histogram(x[n // 2 :], edges)[0] / (n // 2)
    np.testing.assert_allclose(observed, expected, atol=5 * np.sqrt(0.25 / n * 2))


@heads
@dims
def test_leading_axes_broadcast_and_a_context_is_shared_by_its_draws(config, dim, x64):
    head = build(config, dim)
    context, x = draw(4, C), draw(4, 6, dim, seed=2)
    shared = log_prob(head, x, context[:, None])
    repeated = log_prob(head, x, jnp.repeat(context[:, None], 6, axis=1))
    single = jax.jit(jax.vmap(jax.vmap(head.log_prob, (0, None))))(x, context)
    assert shared.shape == (4, 6)
    np.testing.assert_allclose(shared, repeated, atol=1e-10)
    np.testing.assert_allclose(shared, single, atol=1e-10)
    for lead in ((), (2, 4)):
        shape = jax.eval_shape(lambda c: head.sample(c, jax.random.key(0), 3), draw(*lead, C)).shape
        assert shape == (*lead, 3, dim)


@heads
def test_far_values_are_finite_with_finite_gradients(config):
    head = build(config, 2, Decoder)
    x = jnp.array([[1e6, -1e6], [6.0, -6.0], [5.999999, 6.000001], [0.0, 1e6], [100.0, -0.0]])
    context = draw(5, C)
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)

    def loss(params, x):
        head = nnx.merge(graphdef, params, rest)
        return (-head.log_prob(x, context) if isinstance(head, DensityHead) else head.loss(x, context, jax.random.key(0))).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@heads
def test_a_row_does_not_touch_the_others(config, x64):
    """A NaN row leaves the values of the others, and, where the row is replaced before it is masked, the parameters' gradient."""
    head = build(config, 2)
    x, context = draw(4, 2), draw(4, C, seed=2)
    good = np.array([True, False, True, True])
    broken_x, broken_context = x.at[1].set(jnp.nan), context.at[1].set(jnp.nan)
    values = log_prob(head, broken_x, broken_context)
    np.testing.assert_allclose(values[good], log_prob(head, x, context)[good], atol=1e-12)
    assert np.isnan(values[1])
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)

    def masked(params, x, context):
        x, context = (jnp.where(good[:, None], field, 0) for field in (x, context))
        return jnp.where(good, nnx.merge(graphdef, params, rest).log_prob(x, context), 0).sum()

    def without(params, x, context):
        return nnx.merge(graphdef, params, rest).log_prob(x[good], context[good]).sum()

    got, expected = jax.jit(jax.grad(masked))(params, broken_x, broken_context), jax.jit(jax.grad(without))(params, x, context)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), got, expected)


@heads
def test_a_bad_row_spoils_no_other(config):
    """Not a number, or too large for a square, in the state or in the context: losses and draws of the other rows stay as they are."""
    head, key = build(config, 2, Decoder), jax.random.key(0)
    x, context = draw(8, 2), draw(8, C, seed=2)
    bad_x, bad_context = x.at[1].set(jnp.nan).at[2].set(1e30), context.at[4].set(jnp.nan).at[5].set(-1e30)
    answer = jax.jit(lambda x, c: (head.loss(x, c, key), head.sample(c, key, 3) if isinstance(head, Head) else head.mode(c, key)))
    good = np.array([0, 3, 6, 7])
    for got, expected in zip(answer(bad_x, bad_context), answer(x, context), strict=True):
        np.testing.assert_array_equal(np.asarray(got)[good], np.asarray(expected)[good])
    assert np.isnan(answer(bad_x, bad_context)[0][1])


@heads
@mostly_slow("dim", [2, 1, 5, 40])
def test_gradients_of_draws_are_those_of_differences(config, dim, x64):
    """By parameters and context together: draws are differentiable functions of both, given the key."""
    if config.kind == "score":  # steps that adapt jump with what they follow
        config = dataclasses.replace(config, sampler="adams", steps=4)
    graphdef, params, rest = nnx.split(build(config, dim, Head), nnx.Param, ...)
    context, weight, h = draw(3, C), draw(3, 4, dim, seed=2), 1e-6
    direction = jax.tree.map(lambda leaf: noise(*leaf.shape, seed=3), (params, context))

    def number(at):
        return (nnx.merge(graphdef, at[0], rest).sample(at[1], jax.random.key(0), 4) * weight).sum()

    @jax.jit
    def slopes(at):
        gradient = jax.grad(number)(at)
        moved = lambda step: number(jax.tree.map(lambda a, d: a + step * d, at, direction))  # noqa: E731
        near, wide = ((moved(step) - moved(-step)) / (2 * step) for step in (h, 2 * h))
        return sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction))), (4 * near - wide) / 3

    by_gradient, by_difference = slopes((params, context))
    assert abs(by_difference) > 1e-3
    np.testing.assert_allclose(by_gradient, by_difference, rtol=1e-5)


@heads
def test_draws_do_not_depend_on_the_batch_they_are_in(config):
    if config.kind == "score":  # steps that adapt follow the rounding, which the size of a batch changes
        config = dataclasses.replace(config, sampler="adams")
    head = build(config, 2, Head)
    context, key = draw(8, C), jax.random.key(5)
    draws = lambda context, key, n: np.asarray(jax.jit(head.sample, static_argnums=2)(context, key, n))  # noqa: E731
    whole = draws(context, key, 6)
    np.testing.assert_allclose(draws(context[:3], key, 6), whole[:3], atol=1e-5)
    padded = jnp.concatenate([context[:3], jnp.repeat(context[2:3], 5, axis=0)])
    np.testing.assert_allclose(draws(padded, key, 6)[:3], whole[:3], atol=1e-5)
    np.testing.assert_allclose(draws(context, key, 4), whole[:, :4], atol=1e-5)
    np.testing.assert_allclose(draws(context.reshape(2, 4, C), key, 6).reshape(whole.shape), whole, atol=1e-5)
    assert (abs(draws(context, jax.random.key(6), 6) - whole) > 1e-6).all()
    assert len(np.unique(np.round(whole, 5), axis=0)) == 8


@heads
def test_an_answer_and_its_loss_have_the_leading_axes_of_the_context(config):
    """Whatever the head can do; the loss is finite with finite gradients, and each row's is its own."""
    dim, key = 2, jax.random.key(0)
    head = build(config, dim, Decoder)
    context, x = draw(6, C), draw(6, dim, seed=2)
    for lead in ((), (6,), (2, 3)):
        assert jax.eval_shape(lambda c: head.mode(c, key), draw(*lead, C)).shape == (*lead, dim)
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)

    def loss(params, x):
        each = nnx.merge(graphdef, params, rest).loss(x, context, key)
        return each.sum(), each

    gradient, each = jax.jit(jax.grad(loss, has_aux=True))(params, x)
    assert each.shape == (6,) and np.isfinite(each).all()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    moved = jax.jit(loss)(params, x.at[2].add(1))[1] - each
    assert abs(moved[2]) > 1e-3 and (np.delete(abs(np.asarray(moved)), 2) < 1e-5).all()


@heads
def test_the_mode_has_the_highest_density(config, x64):
    head = build(config, 2)
    context = draw(3, C)
    mode = jax.jit(head.mode)(context, jax.random.key(0))
    best = log_prob(head, sample(head, context, 1, 1000), context[:, None]).max(-1)
    assert mode.shape == (3, 2)
    assert (log_prob(head, mode, context) >= best - 1e-3).all()


@pytest.mark.parametrize("covariance", typing.get_args(typing.get_type_hints(RegressionHeadConfig)["covariance"]))
@dims
def test_a_gaussian_is_the_textbook_gaussian(covariance, dim, x64):
    head = build(RegressionHeadConfig(covariance=covariance, rank=2, width=8), dim)
    context, x = draw(4, C), draw(4, dim, seed=2)
    parts = [part if part is None else np.asarray(part) for part in jax.jit(head.gaussian.parameters)(context)]
    if covariance == "low_rank":
        mean, log_scale, factor = parts
        cov = factor @ np.swapaxes(factor, -1, -2) + np.eye(dim) * np.exp(2 * log_scale)[..., None]
    else:
        mean, log_scale, unit = parts
        whiten = np.eye(dim) * np.exp(-log_scale)[..., None]
        whiten = whiten if unit is None else whiten @ unit
        cov = np.linalg.inv(np.swapaxes(whiten, -1, -2) @ whiten)
    if covariance != "diagonal" and dim > 1:
        assert abs(cov[:, 0, 1]).min() > 1e-3
    expected = jax.jit(jax.vmap(multivariate_normal.logpdf))(x, mean, cov)
    np.testing.assert_allclose(log_prob(head, x, context), expected, atol=1e-9)
    np.testing.assert_allclose(jax.jit(head.mode)(context, jax.random.key(0)), mean)
    draws = sample(head, context[0], 0, 20000)
    np.testing.assert_allclose(np.atleast_2d(np.cov(draws.T)), cov[0], atol=0.06 * float(np.diagonal(cov[0]).max()))


@dataclasses.dataclass(frozen=True)
class Holder:
    head: HeadConfig


@heads
def test_a_configuration_survives_json(config):
    assert from_dict(Holder, to_dict(Holder(config))) == Holder(config)


@pytest.mark.parametrize("kind", sorted(HEADS))
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_that_make_no_sense_are_refused(kind, value):
    sizes = [f.name for f in dataclasses.fields(HEADS[kind]) if f.type in ("int", "float")]
    assert sizes
    for name in sizes:
        with pytest.raises(ConfigError, match="expected .*, got .*; do "):
            HEADS[kind](**{name: type(getattr(HEADS[kind](), name))(value)})


def test_too_many_bins_are_refused():
    with pytest.raises(ConfigError, match="expected 2 to 100 bins, got 1001"):
        FlowHeadConfig(bins=1001)
    with pytest.raises(ConfigError, match="expected 2 to 50 bins, got 51"):
        FlowHeadConfig(family="bpf", bins=51)


def test_a_gaussian_without_its_gaussian_is_refused():
    with pytest.raises(ConfigError, match="expected affine=True for a Gaussian, got False; do "):
        FlowHeadConfig(family="gaussian", affine=False)
