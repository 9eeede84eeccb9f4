"""This library at the sizes of the peers, one family of flow: `python ours.py nsf`. Prints the same line as they do."""

import sys
import time

BEGAN = time.perf_counter()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from common import (  # noqa: E402
    BATCH,
    BINS,
    BOUND,
    DEPTH,
    DRAWS,
    EPOCHS,
    LOOK,
    OBSERVATIONS,
    PAIRS,
    RATE,
    SCANNED,
    TRANSFORMS,
    WIDTH,
    answer,
    clock,
    median_rate,
    two_moons,
)
from flax import nnx  # noqa: E402

import vardax_flax as vf  # noqa: E402
from vardax_flax.training.state import init_state, merge  # noqa: E402

theta, x = two_moons()
data = vf.Batch(input=x, mask=jnp.ones_like(x), target=theta)
STEPS = int(0.9 * PAIRS / BATCH)


def posterior():
    head = vf.FlowHeadConfig(family=sys.argv[1], layers=TRANSFORMS, width=WIDTH, depth=DEPTH, bins=BINS, bound=BOUND, affine=False)
    encoder = vf.IdentityEncoderConfig()
    spec = vf.Batch(*(None if f is None else jax.ShapeDtypeStruct(f.shape[1:], f.dtype) for f in data))
    return vf.AmortizedPosterior(
        encoder.build(spec, nnx.Rngs(0)), head.build(2, 4, nnx.Rngs(0)), vf.AmortizedConfig(encoder=encoder, head=head), spec
    )


def fit(model, epochs):
    config = vf.FitConfig(steps=epochs * STEPS, eval_every=STEPS, held_out=1000, optim=vf.OptimConfig(learning_rate=RATE))
    return vf.fit(model, vf.ArrayStream(data, BATCH), config, progress=False)


first = clock(lambda: vf.fit(posterior(), vf.ArrayStream(data, BATCH), vf.FitConfig(steps=1, eval_every=1), progress=False))
first_step = time.perf_counter() - BEGAN
trained = posterior()
fit(trained, EPOCHS)
cold = time.perf_counter() - BEGAN - first
own = []
for _ in range(3):
    result = fit(posterior(), LOOK)
    own.append(LOOK * STEPS / result.timings["train"])

graphdef, state = init_state(trained, optax.adam(RATE))
arrays, key, optimizer = jax.tree.map(jnp.asarray, data), jax.random.key(0), optax.adam(RATE)


@jax.jit
def scanned(carry):
    def step(carry, i):
        params, opt_state = carry
        rows = (i * BATCH + jnp.arange(BATCH)) % PAIRS
        batch = jax.tree.map(lambda leaf: leaf[rows], arrays)
        gradient = jax.grad(lambda params: merge(graphdef, params, state.statistics).loss(batch, key)[0])(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, carry, jnp.arange(SCANNED))[0]


carry = (state.params, state.opt_state)
scan = median_rate(lambda: jax.block_until_ready(scanned(carry)), SCANNED)
seen = vf.Batch(input=arrays.input[:OBSERVATIONS], mask=arrays.mask[:OBSERVATIONS])
samples = median_rate(lambda: trained.sample(seen, key, DRAWS).block_until_ready(), DRAWS * OBSERVATIONS)
density = median_rate(lambda: trained.log_prob(arrays.target, arrays._replace(target=None)).block_until_ready(), PAIRS)
answer(
    version=vf.__version__, jax=jax.__version__, own=sorted(own)[1], scan=scan, samples=samples, log_prob=density, cold=cold,
    first_step=first_step,
)  # fmt: skip
