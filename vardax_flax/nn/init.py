"""All arrays of a new module from one compiled program: eager initialisation compiles one for every shape and operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from vardax_flax.core.remember import remembered, traced

# the program runs for milliseconds: what the CPU compiler spends on making it fast is never won back
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def initialise(make: Callable[..., nnx.Module], rngs: nnx.Rngs, *static: Any) -> Any:
    """`make(rngs, *static)`, compiled as a whole; counts of `rngs` move on as if it had been called.

    Example:
        >>> layer = initialise(lambda rngs, width: nnx.Linear(3, width, rngs=rngs), nnx.Rngs(0), 4)
        >>> layer.kernel.shape
        (3, 4)
    """
    streams, counts = nnx.split(rngs)
    if traced(counts):
        return make(rngs, *static)  # part of a program of the caller
    draw, structure = _program(make, streams, *static)
    arrays, after = draw(counts)
    nnx.update(rngs, after)
    return nnx.merge(structure[-1], arrays)


@remembered
def _program(make: Callable[..., nnx.Module], streams: Any, *static: Any) -> tuple[Callable[[Any], Any], list[Any]]:
    """Counts of the random streams ↦ arrays of the module and later counts; and the module's structure, known after the first call."""
    structure: list[Any] = []

    def draw(counts: Any) -> Any:
        rngs = nnx.merge(streams, counts)
        graphdef, arrays = nnx.split(make(rngs, *static))
        structure[:] = [graphdef]
        return arrays, nnx.state(rngs)

    return jax.jit(draw, compiler_options=QUICK if jax.default_backend() == "cpu" else {}), structure
