"""What every stream promises, and what every stream over stored simulations promises besides."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from tests.streams.walk import Walk, python_walk
from vardax_flax.core.batch import Batch, Batch1D, check_batch
from vardax_flax.core.config import ConfigError
from vardax_flax.streams import (
    STREAMS,
    ArrayStream,
    DrawsStream,
    EpochOrder,
    RecordStream,
    ResimulatedStream,
    SeedStream,
    WorkerStream,
    read_records,
    write_records,
)
from vardax_flax.streams.arrays import element_spec
from vardax_flax.streams.elements import first_fault, hide_unobserved

BATCH = 6
STORED = 40


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    write_records(Walk(), directory, n=STORED, seed=0, fingerprint={"length": 5}, shard_size=16, batch=8)
    return directory


def _make(kind, records, seed=1, fraction=0.2):
    if kind is SeedStream:
        return SeedStream(Walk(), BATCH, seed)
    if kind is WorkerStream:
        return WorkerStream(python_walk, BATCH, seed, num_workers=0)
    if kind is ArrayStream:
        return ArrayStream(read_records(records), BATCH, seed, fraction)
    if kind is DrawsStream:
        stored = read_records(records)
        return DrawsStream(stored._replace(target=np.stack([stored.target, stored.target + 100], axis=1)), BATCH, seed, fraction)
    if kind is ResimulatedStream:
        return ResimulatedStream(_make(ArrayStream, records, seed, fraction), Walk())
    return RecordStream(records, BATCH, seed, fraction)


@pytest.fixture(params=STREAMS, ids=lambda kind: kind.__name__)
def stream(request, records):
    return _make(request.param, records)


@pytest.fixture(params=[ArrayStream, RecordStream], ids=lambda kind: kind.__name__)
def stored(request, records):
    return _make(request.param, records)


def _same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _elements(batch: Batch) -> list[bytes]:
    return [row.tobytes() for row in np.asarray(batch.target)]


@functools.lru_cache
def _materialize(stream):
    return jax.jit(stream.materialize)


def _whole(stream, step):
    return _materialize(stream)(stream.payload(step, slice(0, BATCH)))


def test_payload_is_a_function_of_seed_and_step(stream, records):
    later, earlier = stream.payload(9, slice(0, BATCH)), stream.payload(2, slice(0, BATCH))
    again = _make(type(stream), records)
    _same(earlier, again.payload(2, slice(0, BATCH)))
    _same(later, again.payload(9, slice(0, BATCH)))
    assert not set(_elements(_whole(stream, 2))) == set(_elements(_whole(stream, 3)))
    assert not set(_elements(_whole(stream, 2))) == set(_elements(_whole(_make(type(stream), records, seed=2), 2)))


def test_spec_describes_an_element(stream):
    batch = _whole(stream, 0)
    for expected, value in zip(stream.spec, batch, strict=True):
        assert (expected is None) == (value is None)
        if value is not None:
            assert value.shape == (BATCH, *expected.shape) and value.dtype == expected.dtype


@pytest.mark.parametrize("per_item", [1, 3])
def test_iterating_from_the_middle_is_the_tail(stream, per_item):
    full = list(stream.iterate(0, 14, per_item=per_item))
    tail = list(stream.iterate(6, 14, per_item=per_item))
    assert len(full) == math.ceil(14 / per_item) and len(tail) == math.ceil(8 / per_item)
    for left, right in zip(full[6 // per_item :], tail, strict=True):
        _same(left, right)
    _same(jax.tree.map(lambda leaf: leaf[0], full[0]), stream.payload(0, slice(0, BATCH)))
    assert jax.tree.leaves(full[-1])[0].shape[0] == (14 % per_item or per_item)


def test_slices_of_processes_are_the_global_batch(stream):
    parts = [stream.payload(5, rows) for rows in (slice(0, 1), slice(1, 4), slice(4, BATCH))]
    _same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), stream.payload(5, slice(0, BATCH)))


def test_held_out_is_fixed_and_never_trained_on(stream, records):
    held_out = stream.held_out(8)
    _same(held_out, _make(type(stream), records).held_out(8))
    assert len(set(_elements(held_out))) == 8
    trained = {element for step in range(50) for element in _elements(_whole(stream, step))}
    assert trained.isdisjoint(_elements(held_out))


def test_values_are_finite_where_a_model_looks(stream):
    batch = _whole(stream, 0)
    assert np.isfinite(np.where(np.asarray(batch.mask) == 1, batch.input, 0)).all() and np.isfinite(batch.target).all()
    assert 0 < np.mean(batch.mask) < 1  # the simulators leave gaps, so the check above had something to hide


@pytest.mark.parametrize("epoch", [0, 3])
def test_two_processes_cover_an_epoch_exactly_once(stored, records, epoch):
    whole = _elements(read_records(records))
    trainable = set(whole) - set(_elements(stored.held_out(8)))
    assert len(trainable) == 32
    seen = [
        element
        for rows in (slice(0, 3), slice(3, BATCH))
        for payload in stored.iterate(0, 32 * (epoch + 1) // BATCH + 1, rows)
        for element in _elements(jax.tree.map(lambda leaf: leaf[0], payload))
    ]
    counts = {element: seen.count(element) for element in trainable}
    assert set(seen) == trainable and max(counts.values()) - min(counts.values()) <= 1
    order = [_elements(_whole(stored, step))[row] for step, row in (divmod(e, BATCH) for e in range(32 * epoch, 32 * (epoch + 1)))]
    assert sorted(order) == sorted(trainable)


def test_arrays_and_records_agree(records):
    for step in (0, 7):
        _same(_make(ArrayStream, records).payload(step, slice(0, 4)), _make(RecordStream, records).payload(step, slice(0, 4)))


def test_epochs_are_shuffled_differently_and_straddled():
    order = EpochOrder(n=10, seed=0, validation_fraction=0.0)
    epochs = order.indices(0, 50).reshape(5, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    np.testing.assert_array_equal(order.indices(7, 33), epochs.ravel()[7:33])
    np.testing.assert_array_equal(order.indices(20, 20), [])


def test_the_held_out_part_depends_on_the_seed_and_leaves_something_to_train():
    choices = {tuple(sorted(EpochOrder(100, seed, 0.1).held_out)) for seed in range(20)}
    assert len(choices) == 20 and all(len(choice) == 10 for choice in choices)
    assert EpochOrder(1, 0, 0.9).train.tolist() == [0]


def test_steps_per_epoch(stored):
    assert stored.steps_per_epoch == 6  # 32 training elements in batches of 6


def test_held_out_beyond_the_store_is_an_error(stored):
    with pytest.raises(ConfigError, match="expected 1 to 8 held-out simulations, got 9; do ask for fewer"):
        stored.held_out(9)


def _arrays(n=20, **changed):
    return Batch(np.zeros((n, 3)), np.ones((n, 3), bool), np.zeros((n, 2)))._replace(**changed)


@pytest.mark.parametrize(
    ("batch", "fraction", "error", "message"),
    [
        (_arrays(0), 0.1, ConfigError, "expected at least one simulation, got 0; do pass a dataset that is not empty"),
        (_arrays(), 1.0, ConfigError, "expected 0 <= validation_fraction < 1, got 1.0"),
        (_arrays(target=np.zeros((19, 2))), 0.1, ValueError, r"expected `target` of shape \(20, 2\), got \(19, 2\)"),
        (_arrays(mask=np.ones((20, 2))), 0.1, ValueError, r"expected `mask` of shape \(20, 3\), got \(20, 2\)"),
        (_arrays(target=np.full((20, 2), np.nan)), 0.1, ValueError, r"expected finite values in `target`.* at \(0, 0\)"),
        (_arrays(input=np.zeros((20, 3), complex)), 0.1, TypeError, "expected real numbers, got dtype complex128"),
        (_arrays(target=np.float32(0)), 0.1, ConfigError, "expected a leading axis of simulations in `target`, got a scalar"),
    ],
)
def test_bad_arrays_are_refused(batch, fraction, error, message):
    with pytest.raises(error, match=message) as caught:
        ArrayStream(batch, 4, validation_fraction=fraction)
    assert "\n" not in str(caught.value)


def test_array_stream_keeps_the_kind_of_batch_and_hides_unobserved_values():
    values = np.arange(24.0).reshape(4, 3, 2)
    values[1, 0, 0] = np.nan
    stream = ArrayStream(Batch1D(values, np.isfinite(values).astype(int), np.zeros_like(values)), 4, validation_fraction=0.0)
    batch = stream.payload(0, slice(0, 4))
    assert isinstance(batch, Batch1D) and batch.input.dtype == np.float32
    assert sorted(batch.input.ravel()) == sorted(np.nan_to_num(values).ravel())
    values[:] = -1  # the stream owns its data
    assert (stream.payload(0, slice(0, 4)).input >= 0).all()


def test_faults_and_harmless_values_are_those_of_check_batch():
    mask = np.array([[1, 0], [1, 1]])
    batch = Batch(np.array([[1, np.nan], [2, 3]]), mask, None, coords=np.full((2, 2, 1), 4.0), noise_scale=np.array([[1, -1], [1, 1.0]]))
    hidden, checked = hide_unobserved(batch), check_batch(batch, element_spec(batch))
    assert first_fault(hidden) is None
    for ours, theirs in zip(hidden, checked, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)
    wrong = hidden._replace(noise_scale=np.array([[1, 1], [1, 0.0]]))
    assert first_fault(wrong) == (1, "expected finite `noise_scale` > 0, got 0.0")
    assert first_fault(wrong._replace(input=np.array([[np.inf, 0], [0, 0]]))) == (0, "expected finite `input`, got inf")


def test_resimulated_states_are_observed_anew_and_never_twice_alike(records):
    plain, anew = _make(ArrayStream, records), _make(ResimulatedStream, records)
    seen = {}
    for step in range(24):
        batch = _whole(anew, step)
        np.testing.assert_array_equal(batch.target, plain.payload(step, slice(0, BATCH)).target)
        for row, state in enumerate(_elements(batch)):
            seen.setdefault(state, []).append(np.where(batch.mask[row] == 1, batch.input[row], np.nan))
    assert all(len(views) >= 4 for views in seen.values())
    assert all(len({view.tobytes() for view in views}) == len(views) for views in seen.values())
    noise = np.concatenate([np.asarray(views) - np.frombuffer(state, np.float32) for state, views in seen.items()])
    assert abs(np.nanmean(noise)) < 5 / np.sqrt(noise.size) and abs(np.nanstd(noise) - 1) < 0.15
    assert abs(np.isnan(noise).mean() - 0.2) < 5 * 0.4 / np.sqrt(noise.size)
    _same(anew.held_out(8), plain.held_out(8))
    assert anew.steps_per_epoch == 6 and anew.n_held_out == 8
    with pytest.raises(ConfigError, match="expected stored states to observe, got None; do "):
        ResimulatedStream(ArrayStream(_arrays(target=None), 4), Walk())


def test_draws_take_turns_and_whole_observations_are_held_out():
    n, draws = 10, 3
    target = np.arange(n * draws, dtype=np.float32).reshape(n, draws, 1)
    stream = DrawsStream(Batch(np.arange(n)[:, None], np.ones((n, 1)), target), 8, seed=0, validation_fraction=0.2)
    epochs = np.concatenate([stream.payload(step, slice(0, 8)).target[:, 0] for step in range(3 * draws)]).reshape(-1, 8)
    for step, epoch in enumerate(epochs):
        payload = stream.payload(step, slice(0, 8))
        np.testing.assert_array_equal(payload.input[:, 0], epoch // draws)  # a draw of this very observation
        assert len(set(epoch // draws)) == 8
    assert len(set(epochs[:draws].ravel())) == 8 * draws  # each pair once before any comes again
    assert stream.n_held_out == 6 and stream.spec.target.shape == (1,)
    assert set(stream.held_out(6).target[:, 0] // draws).isdisjoint(set(epochs.ravel() // draws))
    assert len(set(stream.held_out(6).target[:, 0])) == 6
    with pytest.raises(ConfigError, match="expected 1 to 6 held-out pairs, got 7; do "):
        stream.held_out(7)
    with pytest.raises(ConfigError, match=r"expected `target` of shape \(n, draws, \*state\), got \(10,\); do "):
        DrawsStream(Batch(np.zeros((n, 1)), np.ones((n, 1)), np.zeros(n)), 4)
