"""Linear algebra of small matrices, written out in elementwise operations and scans.

A library routine is called once for each matrix of a batch; written out, a batch of a million 3 × 3 problems is a handful of vector
operations on any device. On the CPU there is a second reason: XLA runs batched LAPACK calls on the pool of threads that waits for
them, and many at a time have brought it to a standstill. And a sum over an axis of few numbers is a loop that no vector unit helps with.
Loops are unrolled up to size `UNROLLED` (those of `cholesky_solve` always); above, they are scans or a library's.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

UNROLLED = 8
SWEEPS = 30  # of Jacobi rotations, at most: four are enough for 3 columns, sixteen for 64 of condition 10⁴


def least_squares(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """argmin ‖a x − b‖ and the triangular factor R of a = Q R, with a positive diagonal, by modified Gram–Schmidt.

    Works on a itself: the condition number of aᵀa is its square, too much for float32. Backward stable with b as one more column
    (Björck 1967, *Solving linear least squares problems by Gram-Schmidt orthogonalization*).

    Args:
        a: `(m, n)` of full rank.
        b: `(m,)`.

    Example:
        >>> x, r = least_squares(jnp.eye(3), jnp.ones(3))
    """
    n = a.shape[1]
    if n > UNROLLED:
        return _least_squares_by_scan(a, b)
    columns = [a[:, j] for j in range(n)] + [b]
    r = [[jnp.zeros((), a.dtype)] * (n + 1) for _ in range(n)]
    for i in range(n):
        r[i][i] = jnp.sqrt(columns[i] @ columns[i])
        q = columns[i] / r[i][i]
        for j in range(i + 1, n + 1):
            r[i][j] = q @ columns[j]
            columns[j] = columns[j] - r[i][j] * q
    factor = jnp.stack([jnp.stack(row[:n]) for row in r])
    return _back_substitute(factor, jnp.stack([row[n] for row in r])), factor


def matvec(a: jax.Array, x: jax.Array) -> jax.Array:
    """a x of `(*batch, m, n)` and `(*batch, n)`, which broadcast, m and n at least 1.

    Example:
        >>> matvec(2 * jnp.eye(3), jnp.ones((10, 3))).shape
        (10, 3)
    """
    if max(a.shape[-2:]) > UNROLLED:
        return jnp.einsum("...ij,...j->...i", a, x)
    entries, columns = (jnp.unstack(row, axis=-1) for row in jnp.unstack(a, axis=-2)), jnp.unstack(x, axis=-1)
    return jnp.stack([sum(entry * column for entry, column in zip(row, columns, strict=True)) for row in entries], axis=-1)


def unit_lower(below: jax.Array, n: int) -> jax.Array:
    """The unit lower triangular `(*batch, n, n)` of its entries below the diagonal, row by row, `(*batch, n (n - 1) / 2)`.

    Example:
        >>> unit_lower(jnp.array([5.0]), 2)
        Array([[1., 0.],
               [5., 1.]], dtype=float32)
    """
    lead = below.shape[:-1]
    if n > UNROLLED:
        rows, columns = np.tril_indices(n, -1)
        return jnp.broadcast_to(jnp.eye(n, dtype=below.dtype), (*lead, n, n)).at[..., rows, columns].set(below)
    left, one, zero = iter(jnp.unstack(below, axis=-1)), jnp.ones(lead, below.dtype), jnp.zeros(lead, below.dtype)
    return jnp.stack([jnp.stack([next(left) if j < i else one if j == i else zero for j in range(n)], -1) for i in range(n)], -2)


def sum_of_squares(x: jax.Array) -> jax.Array:
    """Σᵢ xᵢ² over the last axis.

    Example:
        >>> sum_of_squares(jnp.ones((10, 3))).shape
        (10,)
    """
    if x.shape[-1] > UNROLLED:
        return jnp.square(x).sum(axis=-1)
    return sum((jnp.square(column) for column in jnp.unstack(x, axis=-1)), jnp.zeros(x.shape[:-1], x.dtype))


def cholesky(a: jax.Array) -> jax.Array:
    """Lower triangular L with a = L Lᵀ, of a symmetric positive definite `(n, n)`; above size `UNROLLED` by LAPACK."""
    n = a.shape[0]
    if n > UNROLLED:
        return jnp.linalg.cholesky(a)
    zero = jnp.zeros((), a.dtype)
    lower = [[zero] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            rest = a[i, j] - sum((lower[i][k] * lower[j][k] for k in range(j)), zero)
            lower[i][j] = jnp.sqrt(rest) if i == j else rest / lower[j][j]
    return jnp.stack([jnp.stack(row) for row in lower])


def solve_lower(lower: jax.Array, b: jax.Array, *, transposed: bool = False) -> jax.Array:
    """L⁻¹ b, or L⁻ᵀ b, of a lower triangular `(n, n)` and b `(n, …)`; above size `UNROLLED` by LAPACK."""
    n = lower.shape[0]
    if n > UNROLLED:
        return jax.scipy.linalg.solve_triangular(lower, b, lower=True, trans=int(transposed))
    x: dict[int, jax.Array] = {}
    for i in reversed(range(n)) if transposed else range(n):
        known = sum(((lower[k, i] if transposed else lower[i, k]) * x[k] for k in x), jnp.zeros((), b.dtype))
        x[i] = (b[i] - known) / lower[i, i]
    return jnp.stack([x[i] for i in range(n)])


def cholesky_solve(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x of a x = b for a symmetric positive definite `(n, n)` and b `(n,)`, and bᵀ a⁻¹ b as a sum of squares; NaN if a is not.

    Example:
        >>> cholesky_solve(2 * jnp.eye(3), jnp.ones(3))
        (Array([0.5, 0.5, 0.5], dtype=float32), Array(1.5, dtype=float32))
    """
    n = a.shape[0]
    lower = [[jnp.zeros((), a.dtype)] * n for _ in range(n)]
    y: list[jax.Array] = []
    for i in range(n):
        for j in range(i + 1):
            rest = a[i, j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = jnp.sqrt(rest) if i == j else rest / lower[j][j]
        y.append((b[i] - sum(lower[i][k] * y[k] for k in range(i))) / lower[i][i])
    half = jnp.stack(y)
    return _back_substitute(jnp.stack([jnp.stack(row) for row in lower]).T, half), half @ half


@jax.custom_jvp
def principal_axes(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Right singular vectors as columns `(n, n)` and singular values `(n,)` of a `(n, n)`, smallest first, by one-sided Jacobi rotations.

    The largest component of each vector is positive, so that nearby matrices have nearby vectors (Demmel & Veselić 1992, *Jacobi's method
    is more accurate than QR*).

    Example:
        >>> axes, values = principal_axes(jnp.diag(jnp.array([3.0, 1.0])))
    """
    n = a.shape[1]
    size = n + n % 2  # with a column of zeros, which no rotation changes, the number is even
    half = size // 2
    # a tournament by the circle method: the first stays, the others move on by one place, and meet the one opposite
    order = np.concatenate([[0], np.roll(np.arange(1, size), 1)])
    start = jnp.pad(jnp.concatenate([a, jnp.eye(n, dtype=a.dtype)]), ((0, 0), (0, size - n)))

    def play(work: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        left, right = work[:, :half], work[:, : half - 1 : -1]
        alpha, beta, gamma = (jnp.einsum("ij,ij->j", p[:-n], q[:-n]) for p, q in ((left, left), (right, right), (left, right)))
        zeta = (beta - alpha) / jnp.where(gamma == 0, 1, 2 * gamma)
        t = jnp.where(zeta < 0, -1, 1) / (jnp.abs(zeta) + jnp.sqrt(1 + jnp.square(zeta)))
        t = jnp.where(gamma == 0, 0, t)
        c = 1 / jnp.sqrt(1 + jnp.square(t))
        turned = jnp.concatenate([c * (left - t * right), (c * (t * left + right))[:, ::-1]], axis=1)
        cosine = jnp.abs(gamma) / jnp.where(gamma == 0, 1, jnp.sqrt(alpha) * jnp.sqrt(beta))
        return turned[:, order], cosine.max()

    def sweep(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        work, cosines = jax.lax.scan(play, carry[0], length=size - 1)
        return work, cosines.max(), carry[2] + 1

    def unfinished(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        # convergence is quadratic: a sweep that met no larger angle has brought all to the rounding
        return (carry[1] > math.sqrt(jnp.finfo(a.dtype).eps)) & (carry[2] < SWEEPS)

    done, _, _ = jax.lax.while_loop(unfinished, sweep, (start, jnp.ones((), a.dtype), jnp.zeros((), jnp.int32)))
    work, axes = done[:-n, :n], done[-n:, :n]
    values = jnp.sqrt(jnp.square(work).sum(axis=0))
    rank = jnp.argsort(values)
    axes = axes[:, rank]
    largest = jnp.take_along_axis(axes, jnp.abs(axes).argmax(axis=0)[None], axis=0)
    return axes * jnp.where(largest < 0, -1, 1), values[rank]


@principal_axes.defjvp
def _principal_axes_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple:
    """First-order perturbation theory of aᵀa, of full rank; axes of equal singular values have no derivative and are held still."""
    (a,), (da,) = primals, tangents
    axes, values = principal_axes(a)
    half = (a @ axes).T @ (da @ axes)
    change = half + half.T
    one, other = values[None, :], values[:, None]
    gap = (one - other) * (one + other)
    apart = jnp.abs(one - other) > jnp.finfo(a.dtype).eps * jnp.maximum(one, other)
    return (axes, values), (axes @ jnp.where(apart, change / jnp.where(apart, gap, 1), 0), jnp.diagonal(half) / values)


def _back_substitute(upper: jax.Array, b: jax.Array) -> jax.Array:
    n = upper.shape[0]
    x: list[jax.Array] = [b[0]] * n
    for i in reversed(range(n)):
        x[i] = (b[i] - sum(upper[i, j] * x[j] for j in range(i + 1, n))) / upper[i, i]
    return jnp.stack(x)


def _least_squares_by_scan(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    n = a.shape[1]

    def step(columns: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        q = columns[i] / jnp.sqrt(columns[i] @ columns[i])
        r = jnp.where(jnp.arange(n + 1) < i, 0, columns @ q)
        return columns - r[:, None] * q, r

    _, r = jax.lax.scan(step, jnp.concatenate([a, b[:, None]], axis=1).T, jnp.arange(n))
    return solve_upper(r[:, :n], r[:, n:])[:, 0], r[:, :n]


def solve_upper(upper: jax.Array, b: jax.Array) -> jax.Array:
    """X of R X = B for an upper triangular R `(n, n)` and B `(n, k)`.

    Example:
        >>> solve_upper(2 * jnp.eye(3), jnp.eye(3))[0, 0]
        Array(0.5, dtype=float32)
    """

    def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return x.at[i].set((b[i] - upper[i] @ x) / upper[i, i]), None  # the rows below i are known, those above still zero

    n = upper.shape[0]
    x, _ = jax.lax.scan(step, jnp.zeros_like(b), jnp.arange(n), reverse=True, unroll=n if n <= UNROLLED else 1)
    return x
