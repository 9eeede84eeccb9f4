"""Measure the learned solver beside others:  python -m eval.bench fourdvarnet [--sizes 1-D] [--parts speed memory] [--rounds 5]

The same 4DVarNet three times: ours, the usual one in JAX and one in PyTorch, both written here from the published definition. The usual
one unrolls its loop in Python and keeps everything for the way back; its priors, numbers of channels and steps are those of ours, which
normalises gradients besides. Both JAX programs are one pure function of parameters and a batch, compiled whole; all take turns, and the
tables show medians. Memory is that of temporaries by XLA's own account.
The load of the machine is printed first: on a busy one the threads of PyTorch wait for each other, and its row with one thread counts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from eval.bench.compare import ENVIRONMENTS, measure
from vardax_flax.adjoints import RecursiveCheckpointAdjoint
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.fourdvarnet import BilinearPriorConfig, ConvLSTMConfig, FourDVarNetConfig
from vardax_flax.fourdvarnet.model import assemble
from vardax_flax.nn import initialise


class Size(NamedTuple):
    """What is solved: `batch` states `(times, *grid)`, times being channels, in so many steps.

    The prior is of the state as one vector (`dense`) where that is small, a convolution where it is not.
    """

    state: tuple[int, ...]
    batch: int
    steps: int
    dense: bool
    calls: int  # in one turn
    hidden: int = 32
    latent: int = 32
    alpha: float = 0.2
    rate: float = 1e-3  # of Adam


SIZES = {
    "1-D": Size((20, 40), batch=32, steps=10, dense=True, calls=10),
    "2-D": Size((15, 64, 64), batch=4, steps=5, dense=False, calls=1),
}
LENGTHS = (5, 15, 40)  # steps at which memory and compilation are measured
OBSERVED = 0.3  # share of the points
OURS, OURS_SMALL, USUAL = "ours, keep_all", "ours, checkpoint", "usual JAX, unrolled"
THREADS = {"PyTorch": 0, "PyTorch, one thread": 1}  # 0 is its default
PEER = "with_torch.py"
USUAL_GOAL, TORCH_GOAL = 1.5, 2.0  # how many times faster we want to be
MEMORY_GOALS = {"middle": 1.3, "last": 3.0, "seconds": 1.2}  # growth that we allow with checkpoints


class Program(NamedTuple):
    """A solver as pure functions of its parameters and a batch."""

    params: Any
    analyse: Callable[[Any, Batch], jax.Array]
    loss: Callable[[Any, Batch], jax.Array]


def ours(size: Size, *, keep_all: bool) -> Program:
    """The solver of this library, split once into its structure and its arrays."""
    config = FourDVarNetConfig(
        prior=BilinearPriorConfig(size.latent, dense=size.dense), modulator=ConvLSTMConfig(size.hidden, see_state=False),
        axes="space", periodic=False,
        n_solver_steps=size.steps, alpha=size.alpha, solver_adjoint=RecursiveCheckpointAdjoint(keep_all=keep_all), first_guess="zero",
    )  # fmt: skip
    model = initialise(assemble, nnx.Rngs(0), size.state, config)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    merged = lambda params: nnx.merge(graphdef, params, rest)  # noqa: E731
    key = jax.random.key(0)
    return Program(params, lambda p, batch: merged(p)(batch), lambda p, batch: merged(p).loss(batch, key)[0])


class _Dense(eqx.Module):
    """φ of the state as one vector: h = E x, then D [A h, (B h) ∘ (C h)]."""

    enter: eqx.nn.Linear
    parts: tuple[eqx.nn.Linear, ...]
    leave: eqx.nn.Linear

    def __init__(self, size: Size, key: jax.Array) -> None:
        keys = jax.random.split(key, 5)
        n = int(np.prod(size.state))
        self.enter = eqx.nn.Linear(n, size.latent, key=keys[0])
        self.parts = tuple(eqx.nn.Linear(size.latent, size.latent, key=k) for k in keys[1:4])
        self.leave = eqx.nn.Linear(2 * size.latent, n, key=keys[4])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.enter(x.reshape(-1))
        linear, left, right = (part(h) for part in self.parts)
        return self.leave(jnp.concatenate([linear, left * right])).reshape(x.shape)


class _Convolutional(eqx.Module):
    """φ by convolutions: h = relu(E x), then D [A h, (B h) ∘ (C h)], where A, B, C act on each point."""

    enter: eqx.nn.Conv
    parts: tuple[eqx.nn.Conv, ...]
    leave: eqx.nn.Conv

    def __init__(self, size: Size, key: jax.Array) -> None:
        keys = jax.random.split(key, 5)
        rank, n = len(size.state) - 1, size.state[0]
        self.enter = eqx.nn.Conv(rank, n, size.latent, 3, padding=1, key=keys[0])
        self.parts = tuple(eqx.nn.Conv(rank, size.latent, size.latent, 1, key=k) for k in keys[1:4])
        self.leave = eqx.nn.Conv(rank, 2 * size.latent, n, 3, padding=1, key=keys[4])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(self.enter(x))
        linear, left, right = (part(h) for part in self.parts)
        return self.leave(jnp.concatenate([linear, left * right]))


class _Usual(eqx.Module):
    """One window: x ← x − α O h with h of a ConvLSTM that reads ∇J(x), unrolled."""

    prior: _Dense | _Convolutional
    gates: eqx.nn.Conv
    leave: eqx.nn.Conv
    size: Size = eqx.field(static=True)

    def __init__(self, size: Size, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        rank, n = len(size.state) - 1, size.state[0]
        self.prior = (_Dense if size.dense else _Convolutional)(size, keys[0])
        self.gates = eqx.nn.Conv(rank, n + size.hidden, 4 * size.hidden, 3, padding=1, key=keys[1])
        self.leave = eqx.nn.Conv(rank, size.hidden, n, 1, key=keys[2])
        self.size = size

    def cost(self, x: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sum(mask * (x - y) ** 2) + jnp.sum((x - self.prior(x)) ** 2)

    def __call__(self, y: jax.Array, mask: jax.Array) -> jax.Array:
        x = mask * y
        h = c = jnp.zeros((self.size.hidden, *self.size.state[1:]))
        for _ in range(self.size.steps):
            gradient = jax.grad(self.cost)(x, y, mask)
            entry, forget, leave, cell = jnp.split(self.gates(jnp.concatenate([gradient, h])), 4)
            c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(entry) * jnp.tanh(cell)
            h = jax.nn.sigmoid(leave) * jnp.tanh(c)
            x = x - self.size.alpha * self.leave(h)
        return x


def usual(size: Size) -> Program:
    """The solver of the usual kind."""
    params, static = eqx.partition(_Usual(size, jax.random.key(0)), eqx.is_array)

    def analyse(params: Any, batch: Batch) -> jax.Array:
        return jax.vmap(eqx.combine(params, static))(batch.input, batch.mask)

    return Program(params, analyse, lambda params, batch: jnp.square(analyse(params, batch) - batch.target).mean())


def draw(size: Size) -> Batch:
    """Noise under a mask: what is timed does not depend on values."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(size.batch, *size.state)).astype(np.float32)
    mask = (rng.uniform(size=truth.shape) < OBSERVED).astype(np.float32)
    return jax.device_put(Batch(input=mask * truth, mask=mask, target=truth))


def timers(size: Size, program: Program) -> dict[str, Callable[[], float]]:
    """Seconds of an analysis, and of a training step (gradient of the loss, Adam), each compiled once."""
    batch, optimizer = draw(size), optax.adam(size.rate)
    analyse = jax.jit(program.analyse)

    @jax.jit
    def train(params: Any, state: Any, batch: Batch) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(program.loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    carry = train(program.params, optimizer.init(program.params), batch)

    def step() -> Any:
        nonlocal carry
        carry = train(*carry, batch)
        return carry

    def clock(call: Callable[[], Any]) -> float:
        began = time.perf_counter()
        for _ in range(size.calls):
            last = call()
        jax.block_until_ready(last)
        return (time.perf_counter() - began) / size.calls

    jax.block_until_ready((carry, analyse(program.params, batch)))
    return {"analysis": lambda: clock(lambda: analyse(program.params, batch)), "train": lambda: clock(step)}


def speed(size: Size, rounds: int) -> dict[str, dict[str, Any]]:
    """Medians in seconds over rounds in which all take turns; a peer that fails is not asked again."""
    programs = {OURS: ours(size, keep_all=True), OURS_SMALL: ours(size, keep_all=False), USUAL: usual(size)}
    clocks = {name: timers(size, program) for name, program in programs.items()}
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, clock in clocks.items():
            found.setdefault(name, []).append({column: seconds() for column, seconds in clock.items()})
        for name, threads in THREADS.items():
            results = found.setdefault(name, [])
            if not results or "problem" not in results[-1]:
                results.append(_torch(size, threads))
    sizes = {name: {"parameters": sum(leaf.size for leaf in jax.tree.leaves(program.params))} for name, program in programs.items()}
    return {name: _medians(results) | sizes.get(name, {}) for name, results in found.items()}


def _torch(size: Size, threads: int) -> dict[str, Any]:
    python = ENVIRONMENTS / "sbi" / "bin" / "python"  # the one environment that has PyTorch
    if not python.exists():
        return {"problem": "not installed; do run make bench-peers"}
    return measure(python, PEER, json.dumps(size._asdict() | {"threads": threads, "observed": OBSERVED}))


def _medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    if "problem" in results[-1]:
        return results[-1]
    return results[0] | {name: float(np.median([r[name] for r in results])) for name in ("analysis", "train")}


def footprint(program: Program, size: Size) -> dict[str, float]:
    """Seconds to trace and to compile the gradient of the loss, and MB of its temporaries."""
    batch = draw(size)
    began = time.perf_counter()
    lowered = jax.jit(jax.grad(program.loss)).lower(program.params, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    analysis: Any = compiled.memory_analysis()
    return {"trace": traced - began, "compile": done - traced, "seconds": done - began, "memory": analysis.temp_size_in_bytes / 1e6}


def memory(size: Size, unrolled: tuple[int, ...]) -> dict[str, dict[int, dict[str, float]]]:
    """What each solver needs at `LENGTHS` steps, the usual one where it is asked for: compiling it takes minutes where it is long."""
    makers = {OURS_SMALL: lambda size: ours(size, keep_all=False), OURS: lambda size: ours(size, keep_all=True), USUAL: usual}
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name, make in makers.items():
        for steps in LENGTHS if name != USUAL else unrolled:
            longer = size._replace(steps=steps)
            found.setdefault(name, {})[steps] = footprint(make(longer), longer)
    return found


def show_speed(sizes: list[str], rounds: int) -> None:
    """Milliseconds of all; in brackets how many times longer than ours that keeps all."""
    tables = {name: speed(SIZES[name], rounds) for name in sizes}
    for name, table in tables.items():
        size, kept = SIZES[name], table[OURS]
        shape = f"{' × '.join(map(str, size.state))}, batch {size.batch}, {size.steps} steps"
        print(f"\n| {name}, {shape} | parameters | analysis, ms | training step, ms |\n|---|---|---|---|")
        for row, cells in table.items():
            if "problem" in cells:
                print(f"| {row} | {cells['problem']} | | |")
                continue
            texts = [f"{1e3 * cells[c]:.1f} ({cells[c] / kept[c]:.2f} ×)" for c in ("analysis", "train")]
            print(f"| {' '.join([row, *cells.get('version', '').split()])} | {cells['parameters']:,} | " + " | ".join(texts) + " |")
    columns = "".join(f" {name}, analysis | {name}, training |" for name in sizes)
    print(f"\n| ours is faster than | wanted |{columns}\n|---|---|" + "---|---|" * len(sizes))
    both = {"analysis": TORCH_GOAL, "train": TORCH_GOAL}
    for peer, wanted in {USUAL: {"train": USUAL_GOAL}, **dict.fromkeys(THREADS, both)}.items():
        ratios = [_faster(table, peer, column, wanted.get(column)) for table in tables.values() for column in ("analysis", "train")]
        print(f"| {peer} | {max(wanted.values())} × | " + " | ".join(ratios) + " |")


def _faster(table: dict[str, dict[str, Any]], peer: str, column: str, wanted: float | None) -> str:
    """How many times the faster of our two is faster, and whether that is enough."""
    if "problem" in table[peer]:
        return "–"
    ratio = table[peer][column] / min(table[name][column] for name in (OURS, OURS_SMALL))
    return f"{ratio:.2f} ×" + ("" if wanted is None else f", {_verdict(ratio >= wanted)}")


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def show_memory(sizes: list[str], longest: int) -> None:
    """MB of temporaries and seconds of compilation at each length, and their growth."""
    first, middle, last = LENGTHS
    for name in sizes:
        unrolled = tuple(steps for steps in LENGTHS if SIZES[name].dense or steps <= longest)
        table = memory(SIZES[name], unrolled)
        print(f"\n| {name}, gradient of the loss | steps | temporaries, MB | trace, s | compile, s |\n|---|---|---|---|---|")
        for row, lengths in table.items():
            for steps, cells in lengths.items():
                print(f"| {row} | {steps} | {cells['memory']:.1f} | {cells['trace']:.2f} | {cells['compile']:.2f} |")
        ends = f"{first} → {last}"
        print(f"\n| {name}, growth | MB, {first} → {middle} | MB, {ends} | trace and compile, {ends} |\n|---|---|---|---|")
        for row, lengths in table.items():
            wanted = MEMORY_GOALS if row == OURS_SMALL else {}
            ratios = [_growth(lengths, "memory", middle, wanted.get("middle")), _growth(lengths, "memory", last, wanted.get("last"))]
            print(f"| {row} | " + " | ".join([*ratios, _growth(lengths, "seconds", last, wanted.get("seconds"))]) + " |")


def _growth(lengths: dict[int, dict[str, float]], column: str, steps: int, wanted: float | None) -> str:
    """How many times more than at the first length, and whether that is within bounds."""
    if steps not in lengths:
        return "not compiled"
    ratio = lengths[steps][column] / lengths[LENGTHS[0]][column]
    return f"{ratio:.2f} ×" + ("" if wanted is None else f", at most {wanted}: {_verdict(ratio <= wanted)}")


def show_fourdvarnet(arguments: list[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench fourdvarnet", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--parts", nargs="+", choices=["speed", "memory"], default=["speed", "memory"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest", type=int, default=15, help="steps of the unrolled loop on fields that are still compiled")
    options = parser.parse_args(arguments)
    require(options.rounds > 0, "--rounds of at least 1", options.rounds, "pass more")
    print(f"\nload of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if "speed" in options.parts:
        show_speed(options.sizes, options.rounds)
    if "memory" in options.parts:
        show_memory(options.sizes, options.longest)
