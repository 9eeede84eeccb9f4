"""What the training loop costs beyond the step itself: `fit` beside the bare jitted step, alternating in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from train.presets import load_preset
from vardax_flax.streams import SeedStream
from vardax_flax.training import FitConfig, fit
from vardax_flax.training.state import init_state, merge

EVERY, ROUNDS, BARE_STEPS = 250, 9, 250


def bare_step(preset: str, *, simulate: bool) -> Callable[[int], float]:
    """A timer of so many optimiser steps (gradient, clip, AdamW, average of weights), one dispatch each, on one fixed batch.

    `simulate` makes the batch inside the step, as `fit` does; else it is ready on the device and costs nothing.
    """
    experiment = load_preset(preset)
    stream = SeedStream(experiment.simulator, experiment.batch_size, experiment.data_seed)
    payload = jax.device_put(stream.payload(0, slice(0, experiment.batch_size)))
    batch = jax.jit(stream.materialize)(payload)
    optimizer = experiment.fit.optim.build(experiment.fit.steps)
    posterior = experiment.build()
    posterior.calibrate(batch)
    graphdef, state = init_state(posterior, optimizer)
    key = jax.random.key(0)

    @jax.jit
    def step(params: Any, ema: Any, opt_state: Any, data: Any) -> tuple[Any, Any, Any]:
        data = stream.materialize(data) if simulate else data
        gradient = jax.grad(lambda p: merge(graphdef, p, state.statistics).loss(data, key)[0])(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, ema, params)
        return params, ema, opt_state

    data = payload if simulate else batch
    carry = jax.block_until_ready(step(state.params, state.ema, state.opt_state, data))

    def rate(n: int) -> float:
        nonlocal carry
        began = time.perf_counter()
        for _ in range(n):
            carry = step(*carry, data)
        jax.block_until_ready(carry)
        return n / (time.perf_counter() - began)

    return rate


def pipeline(preset: str) -> dict[str, float]:
    """Median steps/s of `fit` (evaluations included) and of both bare steps, and the median ratios, round by round."""
    experiment = load_preset(preset)
    ready, simulating = bare_step(preset, simulate=False), bare_step(preset, simulate=True)
    rates: list[tuple[float, float, float]] = []

    def alternate(metrics: dict[str, Any]) -> None:
        rates.append((metrics["steps_per_second"], simulating(BARE_STEPS), ready(BARE_STEPS)))

    stream = SeedStream(experiment.simulator, experiment.batch_size, experiment.data_seed)
    config = FitConfig(steps=EVERY * ROUNDS, eval_every=EVERY, held_out=1024, optim=experiment.fit.optim)
    fit(experiment.build(), stream, config, on_metrics=alternate, progress=False)
    table = np.array(rates[1:])
    fitted, with_simulation, without = np.median(table, axis=0)
    return {
        "fit": fitted,
        "bare": with_simulation,
        "bare, batch ready": without,
        "fit / bare": float(np.median(table[:, 0] / table[:, 1])),
        "fit / bare, batch ready": float(np.median(table[:, 0] / table[:, 2])),
    }
