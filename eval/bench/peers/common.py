"""What every peer's script shares: the data, the sizes, the clocks and the line of JSON that it prints.

A script imports it first, which starts its clock. It runs in the peer's own environment, so it imports nothing but NumPy by itself.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

PAIRS, BATCH, EPOCHS = 10_000, 200, 50
STEPS = int(0.9 * PAIRS / BATCH)  # of an epoch: a tenth is held out
TRANSFORMS, WIDTH, DEPTH, BINS, BOUND = 5, 50, 2, 8, 6.0
OBSERVATIONS = 100
DRAWS = int(os.environ.get("BENCH_DRAWS", "10000"))  # of each observation; fewer for a first look
RATE = 5e-4
ROUNDS = 3
LOOK = 10  # epochs in which the rate of a warm loop is taken
SCANNED = 200  # steps in one hand-written scan


def two_moons(n: int = PAIRS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """θ and x `(n, 2)` of two moons, standardised, float32."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-1, 1, (n, 2))
    angle, radius = rng.uniform(-math.pi / 2, math.pi / 2, n), rng.normal(0.1, 0.01, n)
    point = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=-1)
    total, difference = theta.sum(axis=1), theta[:, 1] - theta[:, 0]
    x = point + np.stack([-np.abs(total), difference], axis=-1) / math.sqrt(2)
    return tuple(((a - a.mean(axis=0)) / a.std(axis=0)).astype(np.float32) for a in (theta, x))  # type: ignore[return-value]


def clock(function: Callable[[], Any]) -> float:
    """Seconds of one call, which must wait for its result."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def median_rate(function: Callable[[], Any], count: float, rounds: int = ROUNDS) -> float:
    """Median of count / seconds over some calls, after one that compiles."""
    function()
    return float(np.median([count / clock(function) for _ in range(rounds)]))


def cold_times(first: Callable[[], Any], whole: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `whole` returns; seconds from the start of the script until a first step is done, and until `whole` is, without that step."""
    took = clock(first)
    first_step = time.perf_counter() - BEGAN
    fitted = whole()
    return fitted, {"first_step": first_step, "cold": time.perf_counter() - BEGAN - took}


def scan_rate(loss: Callable[[Any, Any], Any], params: Any) -> float:
    """Steps per second of Adam in one scan on the device, for a loss of parameters and the indices of a batch."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.adam(RATE)

    @jax.jit
    def scanned(carry: Any) -> Any:
        def step(carry: Any, i: Any) -> Any:
            params, state = carry
            gradient = jax.grad(loss)(params, (i * BATCH + jnp.arange(BATCH)) % PAIRS)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, jnp.arange(SCANNED))[0]

    carry = (params, optimizer.init(params))
    return median_rate(lambda: jax.block_until_ready(scanned(carry)), SCANNED)


def answer(**numbers: Any) -> None:
    """Print the one line that the table reads."""
    sys.stdout.flush()
    print("RESULT " + json.dumps(numbers), flush=True)
