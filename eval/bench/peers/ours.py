"""This library at the sizes of the peers, one family of flow: `python ours.py nsf`. Prints the same line as they do."""

import common  # first: starts the clock

# isort: split
import sys
import time

import jax
import jax.numpy as jnp
from common import BATCH, DRAWS, EPOCHS, LOOK, OBSERVATIONS, PAIRS, STEPS, median_rate
from flax import nnx

import vardax_flax as vf
from vardax_flax.simulators import TwoMoons

theta, x = common.two_moons()
data = vf.Batch(input=x, mask=jnp.ones_like(x), target=theta)


def posterior():
    sizes = {"layers": common.TRANSFORMS, "width": common.WIDTH, "depth": common.DEPTH, "bins": common.BINS, "bound": common.BOUND}
    head = vf.FlowHeadConfig(family=sys.argv[1], **sizes, affine=False)
    return vf.AmortizedConfig(vf.IdentityEncoderConfig(), head).build(TwoMoons(), nnx.Rngs(0))  # of which it takes the shapes


def fit(epochs):
    config = vf.FitConfig(steps=epochs * STEPS, eval_every=STEPS, held_out=1000, optim=vf.OptimConfig(learning_rate=common.RATE))
    return vf.fit(posterior(), vf.ArrayStream(data, BATCH), config, progress=False)


def one_step():
    began = time.perf_counter()
    estimator = posterior()
    built = time.perf_counter() - began
    done = vf.fit(estimator, vf.ArrayStream(data, BATCH), vf.FitConfig(steps=1, eval_every=1), progress=False)
    ready.append(built + done.timings["until the first step"])


ready = []  # after the imports; the call itself takes longer, for it ends with an evaluation
result, times = common.cold_times(one_step, lambda: fit(EPOCHS))
trained = result.estimator
own = sorted(LOOK * STEPS / fit(LOOK).timings["train"] for _ in range(3))[1]

graphdef, params, statistics = nnx.split(trained, nnx.Param, ...)
arrays, key = jax.tree.map(jnp.asarray, data), jax.random.key(0)


def loss(params, rows):
    return nnx.merge(graphdef, params, statistics).loss(jax.tree.map(lambda leaf: leaf[rows], arrays), key)[0]


scan = common.scan_rate(loss, params)
seen = vf.Batch(input=arrays.input[:OBSERVATIONS], mask=arrays.mask[:OBSERVATIONS])
samples = median_rate(lambda: trained.sample(seen, key, DRAWS).block_until_ready(), DRAWS * OBSERVATIONS)
density = median_rate(lambda: trained.log_prob(arrays.target, arrays._replace(target=None)).block_until_ready(), PAIRS)
common.answer(version=vf.__version__, jax=jax.__version__, own=own, scan=scan, samples=samples, log_prob=density, **times, ready=ready[0])
