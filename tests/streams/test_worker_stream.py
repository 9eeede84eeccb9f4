"""Simulators in Python: draws that do not depend on who makes them, and errors that say where."""

from __future__ import annotations

import numpy as np
import pytest

from tests.streams.walk import breaks_late, python_walk, python_walk_without_jax
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.streams import Domain, WorkerStream

GOOD = Batch(np.zeros(3), np.ones(3), np.zeros(2))


@pytest.mark.slow
def test_two_worker_processes_draw_what_this_process_draws():
    stream = WorkerStream(python_walk, 4, seed=7, num_workers=2)
    parallel = WorkerStream(lambda rng: python_walk_without_jax(rng) if _in_worker() else python_walk(rng), 4, seed=7, num_workers=2)
    items = list(parallel.iterate(3, 8, rows=slice(1, 4), per_item=2))
    assert [item.target.shape[0] for item in items] == [2, 2, 1]
    for field in ("input", "mask", "target"):
        expected = np.stack([getattr(stream.payload(step, slice(1, 4)), field) for step in range(3, 8)])
        np.testing.assert_array_equal(np.concatenate([getattr(item, field) for item in items]), expected)


def _in_worker() -> bool:
    import multiprocessing

    return multiprocessing.parent_process() is not None


def test_an_error_in_a_worker_process_arrives_with_step_and_row():
    stream = WorkerStream(breaks_late, 4, seed=0, num_workers=2)
    place = _first_break(stream)
    assert place[0] > 1  # beyond what the two workers start with
    with pytest.raises(RuntimeError, match=f"got ZeroDivisionError: the pendulum fell off at step {place[0]}, row {place[1]}; do repair"):
        for _ in stream.iterate(0, 100):
            pass


def _first_break(stream: WorkerStream) -> tuple[int, int]:
    for step in range(100):
        for row in range(stream.batch_size):
            try:
                stream.payload(step, slice(row, row + 1))
            except RuntimeError:
                return step, row
    raise AssertionError("the simulator never broke; choose another seed")


class _Fails:
    """Returns GOOD, and something else in the fourth call."""

    def __init__(self, fourth: object) -> None:
        self.calls, self.fourth = -1, fourth  # the first call only asks for shapes

    def __call__(self, rng: np.random.Generator) -> Batch:
        self.calls += 1
        if self.calls != 4:
            return GOOD
        if isinstance(self.fourth, BaseException):
            raise self.fourth
        return self.fourth  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("fourth", "error", "message"),
    [
        (SystemExit(2), RuntimeError, "expected a simulation, got SystemExit: 2 at"),
        (None, TypeError, "expected a Batch, got NoneType at"),
        (GOOD._replace(target=np.zeros(3)), ValueError, r"expected `target` of shape \(2,\) as in the first simulation, got \(3,\) at"),
        (GOOD._replace(target=None), ValueError, r"expected `target` of shape \(2,\) as in the first simulation, got None at"),
        (
            GOOD._replace(background=np.zeros(2)),
            ValueError,
            r"expected `background` of shape None as in the first simulation, got \(2,\) at",
        ),
        (GOOD._replace(target=np.array([0, np.inf])), ValueError, "expected finite `target`, got inf at"),
        (GOOD._replace(target=np.array([0, 1e300])), ValueError, "expected finite `target`, got inf at"),  # beyond float32
        (GOOD._replace(input=np.full(3, np.nan)), ValueError, "expected finite `input`, got nan at"),
        (GOOD._replace(input=np.full(3, np.inf)), ValueError, "expected finite `input`, got inf at"),
        (GOOD._replace(mask=np.array([0, 0.5, 1])), ValueError, "expected 0 or 1 in `mask`, got 0.5 at"),
        (GOOD._replace(target=[[1], [2, 3]]), TypeError, "expected `target` as an array of real numbers, got list at"),
    ],
)
def test_a_wrong_simulation_is_named(fourth, error, message):
    stream = WorkerStream(_Fails(fourth), 8, seed=0, num_workers=0)
    with pytest.raises(error, match=message + " step 6, row 5; do ") as caught:
        stream.payload(6, slice(2, 8))
    assert "\n" not in str(caught.value)


def test_a_mask_must_fit_its_input():
    with pytest.raises(ConfigError, match=r"expected `mask` of the shape of `input`, \(3,\), got \(2,\)"):
        WorkerStream(lambda rng: GOOD._replace(mask=np.ones(2)), 4)


def test_held_out_domains_differ_and_need_no_training_draw():
    stream = WorkerStream(python_walk, 4, seed=0)
    draws = [stream.held_out(8, domain).target for domain in Domain]
    assert len(np.unique(np.concatenate(draws), axis=0)) == 8 * len(Domain)
    np.testing.assert_array_equal(stream.held_out(3).target, stream.held_out(8).target[:3])
