"""A posterior that trains in a second, and an estimator whose every step is known in closed form."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Estimator
from vardax_flax.encoders import IdentityEncoderConfig
from vardax_flax.heads import RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import LinearGaussian
from vardax_flax.streams import SeedStream, Stream
from vardax_flax.training import Checkpoints, FitConfig, OptimConfig
from vardax_flax.training.rundir import CHECKPOINTS
from vardax_flax.training.state import init_state

SIMULATOR = LinearGaussian.random(2, 2, seed=0, noise_std=0.5)


class Mean(Estimator):
    """loss = mean (w − x)² from w = 0; with `kink` it adds √(w²), finite at 0 but without a derivative there."""

    def __init__(self, *, kink: bool = False) -> None:
        self.w = nnx.Param(jnp.zeros(()))
        self.kink = kink

    def loss(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        extra = jnp.sqrt(jnp.square(self.w[...])) if self.kink else 0.0
        return jnp.mean(jnp.square(self.w[...] - batch.target)) + extra, {"w": self.w[...]}


class Pull(Stream):
    """Every target of step s is `train(s)`, every held-out target `held_out`."""

    def __init__(self, train: Callable[[int], float], held_out: float = 0.0) -> None:
        super().__init__(batch_size=512, seed=0)
        self.train, self.apart = train, held_out

    @property
    def spec(self) -> Batch:
        return Batch(*(jax.ShapeDtypeStruct((1,), np.float32),) * 3)

    def payload(self, step: int, rows: slice) -> Batch:
        return self._constant(self.train(step), rows.stop - rows.start)

    def held_out(self, n: int) -> Batch:
        return self._constant(self.apart, n)

    @staticmethod
    def _constant(value: float, n: int) -> Batch:
        ones = np.ones((n, 1), np.float32)
        return Batch(ones, ones, np.float32(value) * ones)


def _posterior() -> Any:
    config = AmortizedConfig(encoder=IdentityEncoderConfig(), head=RegressionHeadConfig(covariance="full", width=8))
    return config.build(SIMULATOR, nnx.Rngs(0))


def _config(**changes: Any) -> FitConfig:
    optim = {"learning_rate": 1e-2, "warmup_steps": 5, "schedule_steps": 40, **changes.pop("optim", {})}
    small = {"steps": 40, "eval_every": 10, "checkpoint_every": 10, "steps_per_dispatch": 5, "held_out": 256}
    return FitConfig(**{**small, **changes}, optim=OptimConfig(**optim))


def _state(run_dir: Path, estimator: Any, config: FitConfig) -> Any:
    """The newest saved state of a run, read without disturbing it."""
    _, like = init_state(estimator, config.optim.build(config.steps))
    with Checkpoints(run_dir / CHECKPOINTS, read_only=True) as checkpoints:
        return checkpoints.restore(like)


def _assert_same(left: Any, right: Any) -> None:
    """Two pytrees equal bit for bit, in structure, shape, dtype and value."""
    pairs = jax.tree_util.tree_leaves_with_path(left), jax.tree_util.tree_leaves_with_path(right)
    assert [path for path, _ in pairs[0]] == [path for path, _ in pairs[1]]
    assert pairs[0]
    for (path, a), (_, b) in zip(*pairs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), f"{jax.tree_util.keystr(path)} differs by {np.max(np.abs(a - b))}"


@pytest.fixture(scope="session")
def parts() -> Iterator[SimpleNamespace]:
    """What the tests of training are made of."""
    yield SimpleNamespace(
        Mean=Mean, Pull=Pull, simulator=SIMULATOR, posterior=_posterior, config=_config, state=_state, assert_same=_assert_same,
        stream=lambda: SeedStream(SIMULATOR, 64), weights=lambda estimator: jax.device_get(nnx.to_pure_dict(nnx.state(estimator))),
    )  # fmt: skip
