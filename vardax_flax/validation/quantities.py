"""Test quantities f(x, element) whose ranks simulation-based calibration judges, fixed before any rank is seen.

Marginals alone are not enough (Modrák et al. 2023, *Simulation-based calibration checking with test quantities*): a posterior that
ignores the observation passes them all, and is caught only by quantities that depend on y; a wrong correlation between exact marginals
passes them all, and is caught by log q and by products. Hence

    x[i]           marginals, all of them up to 16 dimensions, else 8 evenly spread
    direction[k]   above 16 dimensions, the state along 8 fixed random directions
    product        of the first two parameters, standardised (of a single one, its square)
    log q          log q(x | y)
    log likelihood, log prior    if the simulator knows them
    alignment      otherwise: ⟨x, x̂(y)⟩
    tarp           ‖x - x̂(y)‖, expected coverage of balls around a reference that depends on y (Lemos et al. 2023)

where x̂(y) is a kernel ridge regression of x on what is observed, fitted to simulations that no run uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vardax_flax.core.batch import Batch
from vardax_flax.core.config import require
from vardax_flax.core.interfaces import LogJoint, Simulator
from vardax_flax.core.remember import remembered
from vardax_flax.ops.precision import full_precision

Quantity = Callable[[jax.Array, Batch], jax.Array]

PILOT_SIZE = 512
MAX_DIMENSIONS = 16
N_DIRECTIONS = 8
RIDGE = 1.0
RESIDUAL = 1e-4  # relative, of the regression's equations: K (K + I)⁻¹ is below 1, so x̂ is off by at most 1e-4 standard deviations, in rms
CONJUGATE_STEPS = 50  # of a matrix whose k-th largest eigenvalue is between 1 and 1 + 1024 / k


class Pilot(NamedTuple):
    """What a few hundred simulations say about the joint distribution: scales, and a regression of x on y.

    Args:
        mean: prior mean of the flat state `(dim,)`.
        scale: prior standard deviation `(dim,)`.
        inputs_mean: mean of the observed values `(features,)`.
        inputs_scale: their standard deviation `(features,)`.
        inputs: standardised features of the pilot runs `(pilot, features)`.
        weights: dual coefficients of the regression `(pilot, dim)`.
        directions: unit vectors in standardised state space `(8, dim)`.
    """

    mean: jax.Array
    scale: jax.Array
    inputs_mean: jax.Array
    inputs_scale: jax.Array
    inputs: jax.Array
    weights: jax.Array
    directions: jax.Array


def _features(element: Batch) -> tuple[jax.Array, jax.Array]:
    """Everything a posterior conditions on as one vector, and where it is observed."""
    values, seen = [jnp.ravel(element.input)], [jnp.ravel(element.mask)]
    if element.background is not None:
        values.append(jnp.ravel(element.background))
        seen.append(jnp.ones_like(values[-1]))
    return jnp.concatenate(values), jnp.concatenate(seen) > 0


def _moments(values: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    count = jnp.maximum(seen.sum(axis=0), 1)
    mean = jnp.where(seen, values, 0).sum(axis=0) / count
    variance = jnp.where(seen, (values - mean) ** 2, 0).sum(axis=0) / count
    return mean, jnp.where(variance > 0, jnp.sqrt(variance), 1)


def _kernel(a: jax.Array, b: jax.Array) -> jax.Array:
    """a·b / F + exp(-‖a - b‖² / 2F), of order one for F standardised features: `(n, F)`, `(m, F)` → `(n, m)`."""
    size = a.shape[-1]
    linear = a @ b.T / size
    squares = jnp.mean(a**2, axis=-1)[:, None] + jnp.mean(b**2, axis=-1) - 2 * linear
    return linear + jnp.exp(-0.5 * squares)


def make_pilot(simulator: Simulator, key: jax.Array) -> Pilot:
    """Fit the scales and the regression x̂(y) on fresh simulations.

    Args:
        simulator: of the joint distribution.
        key: independent of the keys of all runs.

    Raises:
        ConfigError: a simulator without `target`, or one of which no simulation is finite.

    Example:
        >>> pilot = make_pilot(simulator, jax.random.key(0))
    """
    pilot, n_finite = _pilot_of(simulator)(key)
    require(int(n_finite) > 1, "finite simulations", f"{int(n_finite)} of {PILOT_SIZE}", "repair the simulator")
    return pilot


@remembered
def _pilot_of(simulator: Simulator) -> Callable[[jax.Array], tuple[Pilot, jax.Array]]:
    require(simulator.spec.target is not None, "a simulator with a target", "target None", "return the state in Batch.target")

    @jax.jit
    @full_precision
    def fit(key: jax.Array) -> tuple[Pilot, jax.Array]:
        simulations, direction_key = jax.random.split(key)
        element = jax.vmap(simulator.sample)(jax.random.split(simulations, PILOT_SIZE))
        x = element.target.reshape(PILOT_SIZE, -1)
        y, seen = jax.vmap(_features)(element)
        finite = jnp.isfinite(x).all(axis=-1) & (jnp.isfinite(y) | ~seen).all(axis=-1)
        mean, scale = _moments(x, jnp.broadcast_to(finite[:, None], x.shape))
        y_mean, y_scale = _moments(y, seen & finite[:, None])
        inputs = jnp.where(seen & finite[:, None], (y - y_mean) / y_scale, 0)
        states = jnp.where(finite[:, None], (x - mean) / scale, 0)
        gram = _kernel(inputs, inputs) + RIDGE * jnp.eye(PILOT_SIZE, dtype=inputs.dtype)
        # not by Cholesky: on a CPU the threads of LAPACK go on spinning for a while, on the cores that the runs are about to need
        weights, _ = jax.scipy.sparse.linalg.cg(lambda v: gram @ v, states.astype(gram.dtype), tol=RESIDUAL, maxiter=CONJUGATE_STEPS)
        directions = jax.random.normal(direction_key, (N_DIRECTIONS, x.shape[-1]), x.dtype)
        directions /= jnp.linalg.norm(directions, axis=-1, keepdims=True)
        return Pilot(mean, scale, y_mean, y_scale, inputs, weights, directions), finite.sum()

    return fit


def regress(pilot: Pilot, element: Batch) -> jax.Array:
    """x̂(y) in standardised state space `(dim,)`, from the input, mask and background of one element."""
    values, seen = _features(element)
    inputs = jnp.where(seen, (values - pilot.inputs_mean) / pilot.inputs_scale, 0)
    return (_kernel(inputs[None], pilot.inputs) @ pilot.weights)[0]


def tracked_dimensions(dim: int) -> np.ndarray:
    """Indices of the flat state whose marginals are ranked."""
    return np.arange(dim) if dim <= MAX_DIMENSIONS else np.linspace(0, dim - 1, MAX_DIMENSIONS - N_DIRECTIONS).round().astype(int)


def state_quantities(pilot: Pilot, dim: int) -> dict[str, Quantity]:
    """Marginals and, above 16 dimensions, random directions."""

    def marginal(index: int) -> Quantity:
        return lambda x, element: jnp.ravel(x)[index]

    def direction(index: int) -> Quantity:
        return lambda x, element: (jnp.ravel(x) - pilot.mean) / pilot.scale @ pilot.directions[index]

    named = {f"x[{i}]": marginal(int(i)) for i in tracked_dimensions(dim)}
    return named | ({f"direction[{k}]": direction(k) for k in range(N_DIRECTIONS)} if dim > MAX_DIMENSIONS else {})


def default_quantities(log_prob: Quantity | None, simulator: Simulator, pilot: Pilot, dim: int) -> dict[str, Quantity]:
    """The family described at the top of this file.

    Args:
        log_prob: log q(x | y) of the model, or None if it has no density.
        simulator: of the joint distribution; its log densities are used if it is a `LogJoint`.
        pilot: of the same simulator.
        dim: size of the state.
    """

    def standardised(x: jax.Array) -> jax.Array:
        return (jnp.ravel(x) - pilot.mean) / pilot.scale

    def product(x: jax.Array, element: Any) -> jax.Array:
        z = standardised(x)
        return z[0] * z[min(1, dim - 1)]

    named = state_quantities(pilot, dim) | {"product": product}
    if log_prob is not None:
        named["log q"] = log_prob
    if isinstance(simulator, LogJoint):
        named["log likelihood"] = simulator.log_likelihood
        named["log prior"] = simulator.log_prior
    else:
        named["alignment"] = lambda x, element: standardised(x) @ regress(pilot, element)
    named["tarp"] = lambda x, element: jnp.linalg.norm(standardised(x) - regress(pilot, element))
    return named
