"""What a variational method minimises: a prior that is white in the control variable, and the misfit in units of its error.

J(w) = ½‖w‖² + ½ Σ_t ‖R̃_t^{−½} m_t ⊙ (y_t − H_t(x_t(w)))‖², R̃ = M R M + (I − M), which is
½‖x₀ − x_b‖²_{B⁻¹} (+ ½ Σ ‖η_t‖²_{Q⁻¹}) + ½ Σ_t ‖y_t − H_t(x_t)‖²_{R⁻¹} over what is observed, with x₀ = x_b + B^{½} w₀, η_t = Q^{½} w_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vardax_flax.assimilation.covariance import as_covariance
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.ops.precision import full_precision

Step = Callable[[jax.Array], jax.Array]


class Problem(NamedTuple):
    """The inference of one element, in its control variable.

    Args:
        residual: r(w), whose first entries are w.
        state_of: w ↦ the state to infer.
        window_of: w ↦ all states of the window `(times, *state)`.
        start: w of the background.
        log_noise: log density of the observed values at zero misfit.
    """

    residual: Callable[[jax.Array], jax.Array]
    state_of: Callable[[jax.Array], jax.Array]
    window_of: Callable[[jax.Array], jax.Array]
    start: jax.Array
    log_noise: jax.Array


class Misfit(NamedTuple):
    """Observations of one element and their errors, whitened once.

    Args:
        misfit: predicted `(times, *obs)` ↦ R̃^{−½} m ⊙ (H(x) − y), flat.
        log_noise: log density of the observed values at zero misfit.
    """

    misfit: Callable[[jax.Array], jax.Array]
    log_noise: jax.Array


def misfit(element: Batch, obs_cov: Any) -> Misfit:
    """The misfit of `input (times, *obs)`, of which each time has the same R, or its own variances by `noise_scale`.

    Raises:
        ConfigError: neither `obs_cov` nor `noise_scale` is there.
    """
    times = element.input.shape[0]
    size = math.prod(element.input.shape[1:])
    y, mask = element.input.reshape(times, size), element.mask.reshape(times, size)
    y = jnp.where(mask != 0, y, 0)
    count = mask.sum()
    if obs_cov is None:
        if element.noise_scale is None:
            raise ConfigError("expected obs_cov or a batch with noise_scale, got neither; do pass the covariance of the observation errors")
        scale = jnp.where(mask != 0, element.noise_scale.reshape(times, size), 1)
        matrices, log_dets = 1 / scale, 2 * jnp.log(scale)
    else:
        matrices, log_dets = jax.vmap(as_covariance(obs_cov, size, "obs_cov").whitener)(mask)

    @full_precision
    def white(predicted: jax.Array) -> jax.Array:
        departure = jnp.where(mask != 0, predicted.reshape(times, size) - y, 0)
        return (matrices * departure if matrices.ndim == 2 else jnp.einsum("tij,tj->ti", matrices, departure)).reshape(-1)

    return Misfit(white, -0.5 * (log_dets.sum() + count * math.log(2 * math.pi)))
