"""Elementwise increasing maps given by a formula, inverted by bisection, as distrax bijectors; with parameters of 0 near the identity."""

from __future__ import annotations

import abc
import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.nn import soft_clip

MIN_SLOPE = 1e-3
MAX_RAW = 10.0
BISECTIONS = {4: 26, 8: 56}  # by bytes of the type: down to its rounding
ONE = math.log(math.expm1(1.0))  # softplus(ONE) = 1


class Monotone(distrax.Bijector, abc.ABC):
    """Interface of an increasing map with a formula on [−bound, bound]; outside it goes on straight, with the slope of the edge.

    The inverse is by bisection within the bound, and in closed form outside. Its first derivatives are those of the implicit function,
    dx = (dy − ∂f/∂θ dθ) / f′, by one Newton step: differentiating the bisection itself would give none.

    Args:
        raw: `(n, *batch)` real numbers, broadcast against x `(*batch)`.
        bound: half-width of the domain of the formula.
    """

    def __init__(self, raw: jax.Array, bound: float) -> None:
        super().__init__(event_ndims_in=0)
        # but for the first, which may shift, all are bounded: slopes that grow with what a network extrapolates to overflow in a few layers
        self._raw = jnp.concatenate([raw[:1], soft_clip(raw[1:], MAX_RAW)])
        self._bound_value = bound

    @abc.abstractmethod
    def formula(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """y and log dy/dx within the bound, elementwise."""

    def forward_and_log_det(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """y = f(x) and log dy/dx."""
        inside = jnp.clip(x, -self._bound_value, self._bound_value)
        y, log_slope = self.formula(inside)
        return y + (x - inside) * jnp.exp(log_slope), log_slope

    def inverse_and_log_det(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x = f⁻¹(y) and log dx/dy."""
        shape = jnp.broadcast_shapes(y.shape, self._raw.shape[1:])
        edge = jnp.full(shape, self._bound_value, y.dtype)

        def halve(bracket: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
            low, high = bracket
            middle = 0.5 * (low + high)
            below = self.formula(middle)[0] < y
            return (jnp.where(below, middle, low), jnp.where(below, high, middle)), None

        (low, high), _ = jax.lax.scan(halve, (-edge, edge), length=BISECTIONS[y.dtype.itemsize])
        start = jax.lax.stop_gradient(0.5 * (low + high))
        value, log_slope = self.formula(start)
        # inside, this step carries the derivatives; outside, from the edge, it is exact, and so are those by the slope of the edge
        x = start + (y - value) * jnp.exp(-log_slope)
        return x, -self.forward_and_log_det(x)[1]


class Bernstein(Monotone):
    """y = Σ αᵢ C(M, i) tⁱ (1 − t)^{M − i}, t = (x + b) / 2b, α increasing (Ramasinghe et al. 2021, *Robust normalizing flows*)."""

    def formula(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        degree = self._raw.shape[0] - 1
        width = 2 * self._bound_value
        steps = width / degree * (MIN_SLOPE + (1 - MIN_SLOPE) * jax.nn.softplus(self._raw[1:] + ONE))
        first = self._raw[:1] - self._bound_value
        alpha = jnp.concatenate([first, first + jnp.cumsum(steps, axis=0)])
        t = x / width + 0.5
        y = (alpha * _bernstein(t, degree)).sum(axis=0)
        slope = degree / width * (steps * _bernstein(t, degree - 1)).sum(axis=0)
        return y, jnp.log(slope)


def _bernstein(t: jax.Array, degree: int) -> jax.Array:
    """The degree + 1 Bernstein polynomials at t `(*batch)`, on a new first axis."""
    binomial = np.array([math.comb(degree, i) for i in range(degree + 1)], float)
    return _column(binomial, t) * _powers(t, degree) * _powers(1 - t, degree)[::-1]


def _powers(t: jax.Array, degree: int) -> jax.Array:
    """1, t, …, t^degree on a new first axis; by products, whose gradients are finite at 0."""
    powers = [jnp.ones_like(t)]
    for _ in range(degree):
        powers.append(powers[-1] * t)
    return jnp.stack(powers)


def _column(values: np.ndarray, like: jax.Array) -> jax.Array:
    """Numbers along a new first axis before those of another array."""
    return jnp.asarray(values, like.dtype).reshape(-1, *(1,) * like.ndim)


class SumOfSquares(Monotone):
    """y = c + ∫₀ˣ (ε + Σₖ pₖ(u / b)² / K) du, p of degree 4 (Jaini et al. 2019, *Sum-of-squares polynomial flow*)."""

    DEGREE, POLYNOMIALS = 4, 3
    PARAMETERS = 1 + POLYNOMIALS * (DEGREE + 1)

    def formula(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        shift, rest = self._raw[0], self._raw[1:]
        p = rest.reshape(self.POLYNOMIALS, self.DEGREE + 1, *rest.shape[1:])
        p = p + _column(np.eye(1, self.DEGREE + 1)[0] * math.sqrt(1 - MIN_SLOPE), rest[0])
        t = x / self._bound_value
        # the integrand is a polynomial of degree 8: five Gauss–Legendre nodes integrate it exactly
        nodes, weights = np.polynomial.legendre.leggauss(self.DEGREE + 1)
        at = t * _column(0.5 * (nodes + 1), t)
        integral = x * (self._slope(p[:, :, None], at) * _column(0.5 * weights, t)).sum(axis=0)
        return shift + integral, jnp.log(self._slope(p, t))

    def _slope(self, p: jax.Array, t: jax.Array) -> jax.Array:
        values = (p * _powers(t, self.DEGREE)).sum(axis=1)
        return MIN_SLOPE + jnp.square(values).mean(axis=0)


class LogisticMixture(Monotone):
    """y = ε x + logit Σₖ wₖ σ((x − μₖ) / sₖ), the distribution function of a mixture (Meng et al. 2020, *Gaussianization flows*).

    ε = 1e-3 is the slope left between components far apart, where the inverse would hang on the rounding.
    """

    def formula(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, means, log_scales = jnp.split(self._raw, 3)
        places = np.linspace(-1, 1, len(logits)) if len(logits) > 1 else np.zeros(1)
        log_weights = jax.nn.log_softmax(logits, axis=0)
        log_scales = soft_clip(log_scales, 4.0)
        u = (x - means - _column(places, x)) * jnp.exp(-log_scales)
        below, above = jax.nn.log_sigmoid(u), jax.nn.log_sigmoid(-u)
        log_cdf = jax.nn.logsumexp(log_weights + below, axis=0)
        log_rest = jax.nn.logsumexp(log_weights + above, axis=0)
        log_density = jax.nn.logsumexp(log_weights + below + above - log_scales, axis=0)
        return MIN_SLOPE * x + log_cdf - log_rest, jnp.logaddexp(math.log(MIN_SLOPE), log_density - log_cdf - log_rest)


class Neural(Monotone):
    """y = r x + s + Σₖ aₖ σ(bₖ x + cₖ), r ≥ 0.05, b ≥ 1e-3, a ≥ 0 (Huang et al. 2018, *Neural autoregressive flows*)."""

    def formula(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        shift, slope = self._raw[0], self._raw[1]
        a, b, c = jnp.split(self._raw[2:], 3)
        r = 0.05 + 0.95 * jax.nn.softplus(slope + ONE)
        a, b = jax.nn.softplus(a - 3), 1e-3 + jax.nn.softplus(b + ONE)
        c = c - b * _column(np.linspace(-2, 2, len(a)), x)  # steps start at different places
        sigmoid = jax.nn.sigmoid(b * x + c)
        return r * x + shift + (a * sigmoid).sum(axis=0), jnp.log(r + (a * b * sigmoid * (1 - sigmoid)).sum(axis=0))


class Integrated(Monotone):
    """y = c + ∫₀ˣ g(u) du, g a small positive network (Wehenkel & Louppe 2019, *Unconstrained monotonic neural networks*).

    Sixteen Gauss–Legendre nodes stand for the integral; the slope is the derivative of that sum, so that the density is exact for the map
    that is computed.
    """

    NODES = 16

    def formula(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        shift, level = self._raw[0], self._raw[1]
        a, b, v = (part[:, None] for part in jnp.split(self._raw[2:], 3))  # (units, nodes, *batch)
        places = _column(np.linspace(-1, 1, len(a)), a[0])
        nodes, weights = np.polynomial.legendre.leggauss(self.NODES)
        at, share = _column(0.5 * (nodes + 1), x), _column(0.5 * weights, x)

        def integral(x: jax.Array) -> jax.Array:
            u = x * at / self._bound_value
            inner = (soft_clip(v, 2.0) * jnp.tanh(soft_clip(1 + a, 3.0) * (u - places) + b)).sum(axis=0)
            return x * (share * (MIN_SLOPE + jax.nn.softplus(inner + level + ONE))).sum(axis=0)

        y, slope = jax.jvp(integral, (x,), (jnp.ones_like(x),))
        return shift + y, jnp.log(slope)
