"""Convolution on a grid whose derivatives of every order are fast inside a loop, where a training step lives.

XLA differentiates a convolution by its kernel into another whose windows are as large as the grid; inside a loop on a CPU that one is fifty
times slower than outside. Here a convolution and a correlation are two bilinear operations, each the derivative of the other:

    conv(x, k)_p = Σ_d x_{p+d} k_d          corr(x, c)_d = Σ_p x_{p+d} c_p

The first is XLA's convolution, the second a product for each place of the window.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Pad = tuple[tuple[int, int], ...]  # zeros before and after each axis of the grid


def grid_conv(x: jax.Array, kernel: jax.Array, pad: Pad) -> jax.Array:
    """Σ_d x_{p+d} k_d on a grid with channels last.

    Args:
        x: `(batch, *grid, in)`.
        kernel: `(*window, in, out)`, of the type of x.
        pad: zeros before and after each axis of the grid.

    Returns:
        `(batch, *grid', out)`, an axis of the grid' being longer by its zeros and shorter by its window less one.

    Example:
        >>> grid_conv(jnp.ones((1, 5, 1)), jnp.ones((3, 1, 1)), ((1, 1),))[0, :, 0]
        Array([2., 3., 3., 3., 2.], dtype=float32)
    """
    # what decides on precision is read here: programs are lowered later, out of the context of the caller
    return _conv.bind(x, kernel, pad=pad, precision=jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]


def _places(x: jax.Array, sizes: tuple[int, ...], pad: Pad) -> list[jax.Array]:
    """What each place of a window sees of each point: `(batch, *grid', channels)`, so often as a window has places."""
    padded = jnp.pad(x, [(0, 0), *pad, (0, 0)])
    grid = [n - size + 1 for n, size in zip(padded.shape[1:-1], sizes, strict=True)]
    corners = itertools.product(*map(range, sizes))
    return [padded[(slice(None), *(slice(i, i + n) for i, n in zip(corner, grid, strict=True)))] for corner in corners]


def _turned(kernel: jax.Array) -> jax.Array:
    """The kernel that goes backwards."""
    return jnp.flip(kernel, tuple(range(kernel.ndim - 2))).swapaxes(-1, -2)


def _back(pad: Pad, sizes: tuple[int, ...]) -> Pad:
    return tuple((size - 1 - a, size - 1 - b) for size, (a, b) in zip(sizes, pad, strict=False))


def _conv_by_xla(x: jax.Array, kernel: jax.Array, *, pad: Pad, precision: Any) -> jax.Array:
    axes = "DHW"[-len(pad) :]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(x, kernel, (1,) * len(pad), pad, dimension_numbers=numbers, precision=precision)


def _conv_by_product(x: jax.Array, kernel: jax.Array, *, pad: Pad, precision: Any) -> jax.Array:
    windows = jnp.concatenate(_places(x, kernel.shape[:-2], pad), axis=-1)
    return jnp.matmul(windows, kernel.reshape(-1, kernel.shape[-1]), precision=precision)


def _corr_by_products(x: jax.Array, c: jax.Array, *, pad: Pad, precision: Any) -> jax.Array:
    """`(*window, channels of x, channels of c)`; the window moves over the array that has fewer channels."""
    sizes = tuple(n + sum(zeros) - m + 1 for n, m, zeros in zip(x.shape[1:-1], c.shape[1:-1], pad, strict=True))
    if x.shape[-1] > c.shape[-1]:
        return _turned(_corr_by_products(c, x, pad=_back(pad, sizes), precision=precision))
    columns = c.reshape(-1, c.shape[-1])
    # not one product of all places side by side: on a CPU it takes longer to lay them out than to multiply them
    products = [jnp.matmul(seen.reshape(-1, x.shape[-1]).T, columns, precision=precision) for seen in _places(x, sizes, pad)]
    return jnp.stack(products).reshape(*sizes, x.shape[-1], c.shape[-1])


def _primitive(name: str, function: Any, batched: Any, *, by_row: bool) -> Primitive:
    """A primitive that runs one function, and another under `vmap`, but where rows of the first argument alone become more (`by_row`)."""
    primitive = Primitive(name)

    def shape(a: Any, b: Any, **options: Any) -> Any:
        out = jax.eval_shape(functools.partial(function, **options), *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (a, b)))
        return jax.core.ShapedArray(out.shape, out.dtype)

    def batch(arguments: Any, axes: Any, **options: Any) -> Any:
        a, b = arguments
        if axes[1] is None and by_row:  # the same kernel for more rows
            rows = jnp.moveaxis(a, axes[0], 0)
            out = primitive.bind(rows.reshape(-1, *rows.shape[2:]), b, **options)
            return out.reshape(*rows.shape[:2], *out.shape[1:]), 0
        return jax.vmap(functools.partial(batched, **options), axes)(a, b), 0

    primitive.def_impl(jax.jit(function, static_argnames=("pad", "precision")))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    return primitive


_conv = _primitive("grid_conv", _conv_by_xla, _conv_by_product, by_row=True)
_corr = _primitive("grid_corr", _corr_by_products, _corr_by_products, by_row=False)

ad.defbilinear(
    _conv,
    lambda ct, x, kernel, *, pad, **rest: _conv.bind(ct, _turned(kernel), pad=_back(pad, kernel.shape), **rest),
    lambda ct, x, kernel, *, pad, **rest: _corr.bind(x, ct, pad=pad, **rest),
)
ad.defbilinear(
    _corr,
    lambda ct, x, c, *, pad, **rest: _conv.bind(c, _turned(ct), pad=_back(pad, ct.shape), **rest),
    lambda ct, x, c, *, pad, **rest: _conv.bind(x, ct, pad=pad, **rest),
)
