"""flowjax: masked autoregressive flow with rational-quadratic splines, its own `fit_to_data`."""

import common  # first: starts the clock

# isort: split
import equinox as eqx
import flowjax
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import paramax
from common import BATCH, DRAWS, EPOCHS, LOOK, OBSERVATIONS, PAIRS, STEPS, median_rate
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import masked_autoregressive_flow
from flowjax.train import fit_to_data
from flowjax.train.losses import MaximumLikelihoodLoss

theta, x = map(jnp.asarray, common.two_moons())
flow = masked_autoregressive_flow(
    jr.key(0), base_dist=Normal(jnp.zeros(2)), cond_dim=2, flow_layers=common.TRANSFORMS, nn_width=common.WIDTH, nn_depth=common.DEPTH,
    transformer=RationalQuadraticSpline(knots=common.BINS, interval=common.BOUND),
)  # fmt: skip
# one object each, so that a second call finds the compiled step of the first
options = {"batch_size": BATCH, "optimizer": optax.adam(common.RATE), "loss_fn": MaximumLikelihoodLoss(), "show_progress": False}
options["max_patience"] = 10**6


def fit(epochs: int) -> object:
    fitted, _ = fit_to_data(jr.key(1), flow, (theta, x), max_epochs=epochs, **options)
    return jax.block_until_ready(eqx.filter(fitted, eqx.is_array))


def one_step() -> None:
    fit_to_data(jr.key(1), flow, (theta[: BATCH * 2], x[: BATCH * 2]), max_epochs=1, val_prop=0.5, **options)


_, times = common.cold_times(one_step, lambda: fit(EPOCHS))
own = median_rate(lambda: fit(LOOK), LOOK * STEPS)

params, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable))


def loss(params, rows):
    return -paramax.unwrap(eqx.combine(params, static)).log_prob(theta[rows], x[rows]).mean()


scan = common.scan_rate(loss, params)
seen = x[:OBSERVATIONS]
shipped = median_rate(lambda: flow.sample(jr.key(2), (DRAWS,), condition=seen).block_until_ready(), DRAWS * OBSERVATIONS)
jitted = eqx.filter_jit(lambda flow, key: paramax.unwrap(flow).sample(key, (DRAWS,), condition=seen))
by_hand = median_rate(lambda: jitted(flow, jr.key(2)).block_until_ready(), DRAWS * OBSERVATIONS)
density = median_rate(lambda: flow.log_prob(theta, x).block_until_ready(), PAIRS)
compiled = eqx.filter_jit(lambda flow: paramax.unwrap(flow).log_prob(theta, x))
density = max(density, median_rate(lambda: compiled(flow).block_until_ready(), PAIRS))
samples = max(shipped, by_hand)
common.answer(version=flowjax.__version__, jax=jax.__version__, own=own, scan=scan, samples=samples, log_prob=density, **times)
