"""bayesflow on JAX: a spline coupling flow of so many layers in a workflow, its own `fit_offline`: `python with_bayesflow.py 2`.

Its coupling layers move both halves: two of them are four transforms, one fewer than the others have, three are one more.
"""

import common  # first: starts the clock

# isort: split
import os
import sys
import time

os.environ["KERAS_BACKEND"] = "jax"

import bayesflow as bf
import jax
import jax.numpy as jnp
import keras
from common import BATCH, DEPTH, DRAWS, EPOCHS, LOOK, OBSERVATIONS, PAIRS, STEPS, WIDTH, median_rate

theta, x = common.two_moons()
train, held_out = ({"theta": theta[rows], "x": x[rows]} for rows in (slice(PAIRS // 10, None), slice(PAIRS // 10)))


def workflow():
    network = bf.networks.CouplingFlow(
        depth=int(sys.argv[1]), transform="spline", use_actnorm=False, permutation=None,
        subnet_kwargs={"widths": (WIDTH,) * DEPTH, "dropout": None, "residual": False}, transform_kwargs={"bins": common.BINS},
    )  # fmt: skip
    return bf.BasicWorkflow(
        inference_network=network, inference_variables=["theta"], inference_conditions=["x"], standardize=None,
        initial_learning_rate=common.RATE,
    )  # fmt: skip


def fit(flow, epochs):
    flow.fit_offline(train, epochs=epochs, batch_size=BATCH, validation_data=held_out, verbose=0)


def trained():
    flow = workflow()
    fit(flow, EPOCHS)
    return flow


few = {name: rows[:BATCH] for name, rows in train.items()}
flow, times = common.cold_times(lambda: workflow().fit_offline(few, epochs=1, batch_size=BATCH, verbose=0), trained)
# a new call compiles anew: the rate is that of the second half of one call
moments = []
flow.approximator.fit(
    dataset=bf.datasets.OfflineDataset(train, batch_size=BATCH, adapter=flow.adapter), epochs=3 * LOOK, verbose=0,
    callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: moments.append(time.perf_counter()))],
)  # fmt: skip
own = LOOK * STEPS / (moments[-1] - moments[-1 - LOOK])

network = flow.approximator.inference_network
variables, fixed = network.trainable_variables, network.non_trainable_variables
thetas, xs = jnp.asarray(theta), jnp.asarray(x)


def stateless(values, function):
    pairs = [*zip(variables, values, strict=True), *((v, v.value) for v in fixed)]
    with keras.StatelessScope(pairs):
        return function()


def loss(values, rows):
    return -stateless(values, lambda: network.log_prob(thetas[rows], conditions=xs[rows])).mean()


values = [v.value for v in variables]
scan = common.scan_rate(loss, values)
shipped = median_rate(lambda: flow.sample(num_samples=DRAWS, conditions={"x": x[:OBSERVATIONS]}), DRAWS * OBSERVATIONS)


@jax.jit
def draw(values, key):
    z = jax.random.normal(key, (OBSERVATIONS, DRAWS, 2))
    c = jnp.broadcast_to(xs[:OBSERVATIONS, None], z.shape)
    return stateless(values, lambda: network(z, conditions=c, inverse=True))


by_hand = median_rate(lambda: draw(values, jax.random.key(0)).block_until_ready(), DRAWS * OBSERVATIONS)
density = median_rate(lambda: flow.log_prob({"theta": theta, "x": x}), PAIRS)
compiled = jax.jit(lambda values: stateless(values, lambda: network.log_prob(thetas, conditions=xs)))
density = max(density, median_rate(lambda: compiled(values).block_until_ready(), PAIRS))
common.answer(version=bf.__version__, jax=jax.__version__, own=own, scan=scan, samples=max(shipped, by_hand), log_prob=density, **times)
