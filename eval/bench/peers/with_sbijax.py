"""sbijax: spline coupling flow (`make_spf`), the loop of its `NPE.fit`; with the older JAX that its newest release needs.

That release depends on nightly builds of two other packages: once these are gone from the index, it cannot be installed.
"""

import common  # first: starts the clock

# isort: split
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import sbijax
import sbijax._src.npe as loop
from common import BATCH, DRAWS, EPOCHS, LOOK, OBSERVATIONS, PAIRS, STEPS, median_rate
from sbijax.nn import make_spf
from tensorflow_probability.substrates.jax import distributions as tfd

theta, x = map(jnp.asarray, common.two_moons())
data = {"theta": {"theta": theta}, "y": x}
network = make_spf(
    2, -common.BOUND, common.BOUND, n_layers=common.TRANSFORMS, hidden_sizes=(common.WIDTH,) * common.DEPTH, n_params=3 * common.BINS + 1
)
moments = []


def noting(epochs):
    """In place of its progress bar, which shows every epoch too."""
    for epoch in epochs:
        moments.append(time.perf_counter())
        yield epoch
    moments.append(time.perf_counter())


loop.tqdm = noting


def fit(epochs, data=data, **options):
    model = sbijax.NPE(
        (lambda: tfd.JointDistributionNamed({"theta": tfd.Normal(jnp.zeros(2), 1.0)}), None), network, use_event_space_bijections=False
    )
    fitted, _ = model.fit(
        jr.key(1), data, optimizer=optax.adam(common.RATE), n_iter=epochs, batch_size=BATCH, n_early_stopping_patience=10**6, **options
    )
    return jax.block_until_ready(fitted)


few = jax.tree.map(lambda rows: rows[: 2 * BATCH], data)
params, times = common.cold_times(lambda: fit(1, few, percentage_data_as_validation_set=0.5), lambda: fit(EPOCHS))
moments.clear()
fit(2 * LOOK)
own = LOOK * STEPS / (moments[-1] - moments[-1 - LOOK])  # the second half: each call compiles its step anew, and every epoch its evaluation


def density(params, theta, x):
    return network.apply(params, None, method="log_prob", y=theta, x=x)


scan = common.scan_rate(lambda params, rows: -density(params, theta[rows], x[rows]).mean(), params)
seen = jnp.repeat(x[:OBSERVATIONS], DRAWS, axis=0)
draw = jax.jit(lambda params, key: network.apply(params, key, method="sample", sample_shape=(len(seen),), x=seen))
samples = median_rate(lambda: draw(params, jr.key(2)).block_until_ready(), len(seen))  # its own samples one observation at a time
compiled = jax.jit(density)
log_prob = median_rate(lambda: compiled(params, theta, x).block_until_ready(), PAIRS)
common.answer(version=sbijax.__version__, jax=jax.__version__, own=own, scan=scan, samples=samples, log_prob=log_prob, **times)
