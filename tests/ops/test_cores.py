"""Rows in threads are the rows of one call, whatever is left over, and an error in a thread is an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.ops import cores
from vardax_flax.ops.cores import over_cores


@pytest.mark.parametrize("many", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_parts_are_the_whole(many, n, monkeypatch):
    monkeypatch.setattr(cores, "cores", lambda: many)
    rows = {"a": jnp.arange(2.0 * n).reshape(n, 2), "key": jax.random.split(jax.random.key(0), n)}

    def function(rows, shift):
        return {"sum": rows["a"].sum(axis=1) + shift, "draw": jax.vmap(jax.random.normal)(rows["key"])}

    got, expected = over_cores(function)(rows, 3.0), function(rows, 3.0)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_second_call_compiles_nothing_and_another_form_does(monkeypatch, compiled):
    monkeypatch.setattr(cores, "cores", lambda: 2)
    doubled = over_cores(lambda rows, factor: factor * rows + jnp.linspace(0.0, 1.0, 3)[1])
    half = np.ones(4, np.float16)
    assert doubled(half, np.float32(2)).dtype == np.float32
    before = len(compiled)
    assert doubled(half, np.float32(2)).dtype == np.float32
    assert len(compiled) == before
    with jax.enable_x64(True):  # by a number made inside
        assert doubled(half, np.float32(2)).dtype == np.float64
    assert len(compiled) > before


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, lambda f: lambda x: jax.vmap(f)(x[None])[0]])
def test_inside_a_transformation_it_is_part_of_the_program(transform, monkeypatch):
    """Also where the rows are not traced, and what is traced is closed over."""
    monkeypatch.setattr(cores, "cores", lambda: 2)
    rows = jnp.arange(4.0)

    def number(x):
        return over_cores(lambda rows: x * rows)(rows).sum()

    np.testing.assert_allclose(transform(number)(jnp.float32(2)), transform(lambda x: (x * rows).sum())(jnp.float32(2)))


def test_no_rows_are_no_rows(monkeypatch):
    monkeypatch.setattr(cores, "cores", lambda: 2)
    assert over_cores(jnp.sin)(jnp.zeros((0, 3))).shape == (0, 3)


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(cores, "cores", lambda: 2)

    def complain(row):
        raise ValueError("row 3 is bad")

    with pytest.raises(Exception, match="row 3 is bad"):
        over_cores(lambda rows: jax.pure_callback(complain, rows, rows))(jnp.arange(4.0))
