"""Tiny simulators for the stream tests; run as a module, it writes records until it is killed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Observing
from vardax_flax.streams import write_records


@dataclasses.dataclass(frozen=True)
class Walk(Observing):
    """A random walk, some of whose noisy values are not observed (NaN there, to prove that they are hidden)."""

    kind = "walk"
    length: int = 5

    def sample(self, key: jax.Array) -> Batch:
        walk_key, noise_key, mask_key = jax.random.split(key, 3)
        x = jax.numpy.cumsum(jax.random.normal(walk_key, (self.length,)))
        return Batch(*self._observe(x, noise_key, mask_key), x)

    def observe(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._observe(x, *jax.random.split(key))

    def _observe(self, x: jax.Array, noise_key: jax.Array, mask_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = jax.random.bernoulli(mask_key, 0.8, (self.length,)).astype(x.dtype)
        return jax.numpy.where(mask == 1, x + jax.random.normal(noise_key, (self.length,)), jax.numpy.nan), mask


def python_walk(rng: np.random.Generator) -> Batch:
    """The same in numpy, in float64 as users write it."""
    x = np.cumsum(rng.normal(size=5))
    mask = rng.random(5) < 0.8
    return Batch(np.where(mask, x + rng.normal(size=5), np.nan), mask, x)


def python_walk_without_jax(rng: np.random.Generator) -> Batch:
    """Refuses to run where a JAX backend has been started."""
    from jax._src import xla_bridge

    if xla_bridge.backends_are_initialized():
        raise AssertionError("JAX was started")
    return python_walk(rng)


def breaks_late(rng: np.random.Generator) -> Batch:
    """Raises at one step and row only: where the first uniform number of the test's seed is below the threshold."""
    if rng.random() < 0.02:
        raise ZeroDivisionError("the pendulum\nfell off")
    return python_walk(rng)


def write(directory: Path, n: int = 4000, shard_size: int = 50) -> None:
    write_records(Walk(), directory, n=n, seed=3, fingerprint={"length": 5}, shard_size=shard_size, batch=32)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
