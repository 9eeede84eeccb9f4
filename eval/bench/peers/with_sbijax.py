"""sbijax: a coupling flow with rational-quadratic splines, its own `NPE.fit`."""

import common  # first: starts the clock

# isort: split
from importlib.metadata import version

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from common import BATCH, DRAWS, EPOCHS, LOOK, OBSERVATIONS, PAIRS, STEPS, median_rate
from sbijax import NPE
from sbijax.nn import make_spf
from tensorflow_probability.substrates.jax import distributions as tfd

theta, x = map(jnp.asarray, common.two_moons())
flow = make_spf(
    2, -common.BOUND, common.BOUND, n_layers=common.TRANSFORMS, hidden_sizes=(common.WIDTH,) * common.DEPTH, n_params=common.BINS
)
optimizer, data = optax.adam(common.RATE), {"y": x, "theta": {"theta": theta}}


def prior():
    return tfd.JointDistributionNamed({"theta": tfd.Normal(jnp.zeros(2), 1.0)})


def fit(epochs, rows=PAIRS):
    model = NPE((prior, None), flow, use_event_space_bijections=False)
    few = jax.tree.map(lambda a: a[:rows], data)
    options = {"n_iter": epochs, "batch_size": BATCH, "n_early_stopping_patience": 10**6}
    return model, jax.block_until_ready(model.fit(jr.key(1), few, optimizer=optimizer, **options)[0])


(model, params), times = common.cold_times(lambda: fit(1, 220), lambda: fit(EPOCHS))
own = median_rate(lambda: fit(LOOK), LOOK * STEPS)


def log_prob(params, theta, x):
    return flow.apply(params, None, method="log_prob", y=theta, x=x)


scan = common.scan_rate(lambda params, rows: -log_prob(params, theta[rows], x[rows]).mean(), params)


def shipped():
    for i in range(OBSERVATIONS):
        draws, _ = model.sample_posterior(jr.key(i), params, x[i], n_samples=DRAWS, check_proposal_probs=False)
    jax.block_until_ready(jax.tree.leaves(draws.posterior["theta"].values))


@jax.jit
def draw(params, key):
    seen = jnp.repeat(x[:OBSERVATIONS], DRAWS, axis=0)
    return flow.apply(params, key, method="sample", sample_shape=(len(seen),), x=seen)


by_hand = median_rate(lambda: draw(params, jr.key(2)).block_until_ready(), DRAWS * OBSERVATIONS)
samples = max(by_hand, median_rate(shipped, DRAWS * OBSERVATIONS, rounds=1))
compiled = jax.jit(log_prob)
density = median_rate(lambda: compiled(params, theta, x).block_until_ready(), PAIRS)
common.answer(version=version("sbijax"), jax=jax.__version__, own=own, scan=scan, samples=samples, log_prob=density, **times)
