"""flowjax: masked autoregressive flow with rational-quadratic splines, its own `fit_to_data`."""

import time

BEGAN = time.perf_counter()

import equinox as eqx  # noqa: E402
import flowjax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax.random as jr  # noqa: E402
import optax  # noqa: E402
import paramax  # noqa: E402
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
from flowjax.bijections import RationalQuadraticSpline  # noqa: E402
from flowjax.distributions import Normal  # noqa: E402
from flowjax.flows import masked_autoregressive_flow  # noqa: E402
from flowjax.train import fit_to_data  # noqa: E402
from flowjax.train.losses import MaximumLikelihoodLoss  # noqa: E402

theta, x = map(jnp.asarray, two_moons())
flow = masked_autoregressive_flow(
    jr.key(0), base_dist=Normal(jnp.zeros(2)), cond_dim=2, flow_layers=TRANSFORMS, nn_width=WIDTH, nn_depth=DEPTH,
    transformer=RationalQuadraticSpline(knots=BINS, interval=BOUND),
)  # fmt: skip
# one object each, so that a second call finds the compiled step of the first
options = {"batch_size": BATCH, "optimizer": optax.adam(RATE), "loss_fn": MaximumLikelihoodLoss(), "show_progress": False}
options["max_patience"] = 10**6


def fit(epochs: int) -> object:
    fitted, _ = fit_to_data(jr.key(1), flow, (theta, x), max_epochs=epochs, **options)
    return jax.block_until_ready(eqx.filter(fitted, eqx.is_array))


first = clock(lambda: fit_to_data(jr.key(1), flow, (theta[: BATCH * 2], x[: BATCH * 2]), max_epochs=1, val_prop=0.5, **options))
first_step = time.perf_counter() - BEGAN
fit(EPOCHS)
cold = time.perf_counter() - BEGAN - first
own = median_rate(lambda: fit(LOOK), LOOK * int(0.9 * PAIRS / BATCH))

params, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable))
optimizer = optax.adam(RATE)


@jax.jit
def scanned(carry):
    def step(carry, i):
        params, state = carry
        rows = (i * BATCH + jnp.arange(BATCH)) % PAIRS

        def loss(params):
            return -paramax.unwrap(eqx.combine(params, static)).log_prob(theta[rows], x[rows]).mean()

        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (eqx.apply_updates(params, updates), state), None

    return jax.lax.scan(step, carry, jnp.arange(SCANNED))[0]


carry = (params, optimizer.init(params))
scan = median_rate(lambda: jax.block_until_ready(scanned(carry)), SCANNED)
seen = x[:OBSERVATIONS]
shipped = median_rate(lambda: flow.sample(jr.key(2), (DRAWS,), condition=seen).block_until_ready(), DRAWS * OBSERVATIONS)
jitted = eqx.filter_jit(lambda flow, key: paramax.unwrap(flow).sample(key, (DRAWS,), condition=seen))
by_hand = median_rate(lambda: jitted(flow, jr.key(2)).block_until_ready(), DRAWS * OBSERVATIONS)
density = median_rate(lambda: flow.log_prob(theta, x).block_until_ready(), PAIRS)
compiled = eqx.filter_jit(lambda flow: paramax.unwrap(flow).log_prob(theta, x))
density = max(density, median_rate(lambda: compiled(flow).block_until_ready(), PAIRS))
answer(
    version=flowjax.__version__, jax=jax.__version__, own=own, scan=scan, samples=max(shipped, by_hand), log_prob=density, cold=cold,
    first_step=first_step,
)  # fmt: skip
