"""Rows in threads are the rows of one call, whatever is left over, and an error in a thread is an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops import cores
from vardax_flax.ops.cores import OverCores


@pytest.mark.parametrize("many", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_parts_are_the_whole(many, n, monkeypatch):
    monkeypatch.setattr(cores, "cores", lambda: many)
    rows = {"a": jnp.arange(2.0 * n).reshape(n, 2), "key": jax.random.split(jax.random.key(0), n)}

    def function(rows, shift):
        return {"sum": rows["a"].sum(axis=1) + shift, "draw": jax.vmap(jax.random.normal)(rows["key"])}

    got, expected = OverCores(function)(rows, 3.0), function(rows, 3.0)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_second_call_compiles_nothing_and_another_precision_does(monkeypatch):
    monkeypatch.setattr(cores, "cores", lambda: 2)
    traces = []

    def function(rows):
        traces.append(rows.dtype)
        return 2 * rows

    twice = OverCores(function)
    for _ in range(2):
        np.testing.assert_array_equal(twice(jnp.arange(4.0)), 2 * np.arange(4.0))
    assert len(traces) == 1
    with jax.enable_x64(True):
        assert twice(np.arange(4.0)).dtype == np.float64


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(cores, "cores", lambda: 2)

    def complain(row):
        raise ValueError("row 3 is bad")

    with pytest.raises(Exception, match="row 3 is bad"):
        OverCores(lambda rows: jax.pure_callback(complain, rows, rows))(jnp.arange(4.0))
