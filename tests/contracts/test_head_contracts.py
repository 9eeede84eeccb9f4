"""What every registered head promises: a normalised density, draws of that density, rows that do not see each other."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.stats import multivariate_normal

from tests.perturb import perturb
from vardax_flax.core.config import ConfigError, from_dict, to_dict
from vardax_flax.core.interfaces import DensityHead
from vardax_flax.flows import FAMILIES
from vardax_flax.heads import HEADS, FlowHeadConfig, HeadConfig, RegressionHeadConfig

C = 3  # features of the context
SMALL = {"width": 8, "layers": 3, "bins": 5, "rank": 2}
VARIANTS = {"regression": [{"covariance": c} for c in ("diagonal", "low_rank", "full")], "flow": [{"family": f} for f in FAMILIES]}


def configs():
    """One small configuration for each variant of each registered head; a new head is taken with its defaults."""
    for kind, cls in HEADS.items():
        names = {f.name for f in dataclasses.fields(cls)}
        small = {name: value for name, value in SMALL.items() if name in names}
        for variant in VARIANTS.get(kind, [{}]):
            yield pytest.param(cls(**small, **variant), id="-".join([kind, *map(str, variant.values())]))


heads = pytest.mark.parametrize("config", list(configs()))
dims = pytest.mark.parametrize("dim", [1, 2, 5])


def build(config, dim, scale=0.3):
    head = perturb(config.build(dim, C, nnx.Rngs(0)), scale)
    if not isinstance(head, DensityHead):
        pytest.skip("no density")
    return head


def draw(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


@heads
@pytest.mark.parametrize(("dim", "n"), [(1, 4001), (2, 161)])
def test_the_density_integrates_to_one(config, dim, n, x64):
    head = build(config, dim)
    draws = head.sample(draw(2, C), jax.random.key(0), 2000)
    center, spread = draws.mean(1), draws.std(1)
    axis = jnp.linspace(-9, 9, n)
    grid = jnp.stack(jnp.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    points = center[:, None] + spread[:, None] * grid
    log_prob = jax.jit(head.log_prob)(points, draw(2, C)[:, None])
    mass = jnp.exp(log_prob).sum(-1) * jnp.prod(spread * (axis[1] - axis[0]), axis=-1)
    np.testing.assert_allclose(mass, 1, atol=2e-3)


@heads
@dims
def test_draws_follow_the_density(config, dim, x64):
    """E_q[∇ₓ log q] = 0 and E_q[x · ∇ₓ log q] = −1 for every component (Stein), each within five standard errors."""
    head, n = build(config, dim), 4000
    context = draw(C)
    x = head.sample(context, jax.random.key(3), n)
    score = jax.jit(jax.vmap(jax.grad(lambda x: head.log_prob(x, context))))(x)
    for statistic in (score, x * score + 1):
        error = statistic.std(0) / np.sqrt(n)
        assert (abs(statistic.mean(0)) < 5 * error).all()
        assert (error < 1).all()


@heads
def test_a_histogram_of_draws_is_the_density(config, x64):
    head, n = build(config, 1), 20000
    context = draw(C)
    x = np.asarray(head.sample(context, jax.random.key(3), n))[:, 0]
    edges = np.quantile(x[: n // 2], np.linspace(0.05, 0.95, 10))
    fine = np.linspace(edges[:-1], edges[1:], 201)  # (201, 9)
    density = np.exp(np.asarray(jax.jit(head.log_prob)(jnp.asarray(fine)[..., None], context)))
    expected = np.trapezoid(density, fine, axis=0)
    observed = np.histogram(x[n // 2 :], edges)[0] / (n // 2)
    np.testing.assert_allclose(observed, expected, atol=5 * np.sqrt(0.25 / n * 2))


@heads
@dims
def test_leading_axes_broadcast_and_a_context_is_shared_by_its_draws(config, dim, x64):
    head = build(config, dim)
    context, x = draw(4, C), draw(4, 6, dim, seed=2)
    shared = head.log_prob(x, context[:, None])
    repeated = head.log_prob(x, jnp.repeat(context[:, None], 6, axis=1))
    single = jnp.stack([jnp.stack([head.log_prob(x[i, j], context[i]) for j in range(2)]) for i in range(2)])
    assert shared.shape == (4, 6)
    np.testing.assert_allclose(shared, repeated, atol=1e-10)
    np.testing.assert_allclose(shared[:2, :2], single, atol=1e-10)
    assert head.sample(context[0], jax.random.key(0), 3).shape == (3, dim)
    assert head.sample(draw(2, 4, C), jax.random.key(0), 3).shape == (2, 4, 3, dim)


@heads
def test_far_values_are_finite_with_finite_gradients(config):
    head = build(config, 2)
    x = jnp.array([[1e6, -1e6], [6.0, -6.0], [5.999999, 6.000001], [0.0, 1e6], [100.0, -0.0]])
    context = draw(5, C)
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)

    def loss(params, x):
        return nnx.merge(graphdef, params, rest).log_prob(x, context).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@heads
def test_a_row_does_not_touch_the_others(config, x64):
    """A NaN row leaves the values of the others, and, where the row is replaced before it is masked, the parameters' gradient."""
    head = build(config, 2)
    x, context = draw(4, 2), draw(4, C, seed=2)
    good = jnp.array([True, False, True, True])
    broken_x, broken_context = x.at[1].set(jnp.nan), context.at[1].set(jnp.nan)
    values = head.log_prob(broken_x, broken_context)
    np.testing.assert_allclose(values[good], head.log_prob(x, context)[good], atol=1e-12)
    assert np.isnan(values[1])
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)

    def masked(params, x, context):
        x, context = jnp.where(good[:, None], x, 0), jnp.where(good[:, None], context, 0)
        return jnp.where(good, nnx.merge(graphdef, params, rest).log_prob(x, context), 0).sum()

    def without(params, x, context):
        return nnx.merge(graphdef, params, rest).log_prob(x[good], context[good]).sum()

    got, expected = jax.grad(masked)(params, broken_x, broken_context), jax.grad(without)(params, x, context)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), got, expected)


@heads
def test_draws_do_not_depend_on_the_batch_they_are_in(config):
    head = build(config, 2)
    context, key = draw(8, C), jax.random.key(5)
    sample = jax.jit(head.sample, static_argnums=2)
    whole = sample(context, key, 6)
    np.testing.assert_allclose(sample(context[:3], key, 6), whole[:3], atol=1e-5)
    padded = jnp.concatenate([context[:3], jnp.repeat(context[2:3], 5, axis=0)])
    np.testing.assert_allclose(sample(padded, key, 6)[:3], whole[:3], atol=1e-5)
    np.testing.assert_allclose(sample(context, key, 4), whole[:, :4], atol=1e-5)
    np.testing.assert_allclose(sample(context.reshape(2, 4, C), key, 6).reshape(whole.shape), whole, atol=1e-5)
    assert (abs(sample(context, jax.random.key(6), 6) - whole) > 1e-6).all()
    assert len(np.unique(np.round(whole, 5), axis=0)) == 8


@heads
def test_the_mode_has_the_highest_density(config, x64):
    head = build(config, 2)
    context = draw(3, C)
    mode = jax.jit(head.mode)(context, jax.random.key(0))
    best = head.log_prob(head.sample(context, jax.random.key(1), 1000), context[:, None]).max(-1)
    assert mode.shape == (3, 2)
    assert (head.log_prob(mode, context) >= best - 1e-3).all()


@pytest.mark.parametrize("covariance", typing.get_args(typing.get_type_hints(RegressionHeadConfig)["covariance"]))
@dims
def test_a_gaussian_is_the_textbook_gaussian(covariance, dim, x64):
    head = build(RegressionHeadConfig(covariance=covariance, rank=2, width=8), dim)
    context, x = draw(4, C), draw(4, dim, seed=2)
    parts = head.gaussian.parameters(context)
    if covariance == "low_rank":
        mean, log_scale, factor = parts
        cov = factor @ jnp.swapaxes(factor, -1, -2) + jnp.eye(dim) * jnp.exp(2 * log_scale)[..., None]
    else:
        mean, log_scale, unit = parts
        whiten = jnp.eye(dim) * jnp.exp(-log_scale)[..., None]
        whiten = whiten if unit is None else whiten @ unit
        cov = jnp.linalg.inv(jnp.swapaxes(whiten, -1, -2) @ whiten)
    if covariance != "diagonal" and dim > 1:
        assert abs(cov[:, 0, 1]).min() > 1e-3
    np.testing.assert_allclose(head.log_prob(x, context), jax.vmap(multivariate_normal.logpdf)(x, mean, cov), atol=1e-9)
    np.testing.assert_allclose(head.mode(context, jax.random.key(0)), mean)
    draws = np.asarray(head.sample(context[0], jax.random.key(0), 20000))
    np.testing.assert_allclose(np.atleast_2d(np.cov(draws.T)), cov[0], atol=0.06 * float(jnp.diagonal(cov[0]).max()))


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
            HEADS[kind](**{name: value})


def test_too_many_bins_are_refused():
    with pytest.raises(ConfigError, match="expected 2 to 100 bins, got 1001"):
        FlowHeadConfig(bins=1001)
