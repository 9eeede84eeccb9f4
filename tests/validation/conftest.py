"""A conjugate Gaussian and posteriors with planted defects, the known truths that the gates are judged on."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Conjugate, Simulator

# three parameters seen through two noisy sums: every posterior correlation is at least 0.3 in size
DESIGN = np.array([[1.0, 0.8, 0.3], [0.2, 0.9, -0.8]])
NOISE = 0.4
PRECISION = np.eye(3) + DESIGN.T @ DESIGN / NOISE**2
COVARIANCE = np.linalg.inv(PRECISION)
GAIN = COVARIANCE @ DESIGN.T / NOISE**2


class Implicit(Simulator):
    """x ~ N(0, I), y = A x + 0.4 ε, densities kept to itself."""

    kind = "implicit_gaussian"

    def sample(self, key: jax.Array) -> Batch:
        x_key, y_key = jax.random.split(key)
        x = jax.random.normal(x_key, (3,))
        y = jnp.asarray(DESIGN) @ x + NOISE * jax.random.normal(y_key, (2,))
        return Batch(input=y, mask=jnp.ones_like(y), target=x)


class Gaussian(Conjugate):
    """The same with its densities and its posterior."""

    kind = "conjugate_gaussian"
    sample = Implicit.sample

    def log_prior(self, x: jax.Array, element: Batch) -> jax.Array:
        return -0.5 * (x**2).sum(-1)

    def log_likelihood(self, x: jax.Array, element: Batch) -> jax.Array:
        return -0.5 * ((element.input - x @ jnp.asarray(DESIGN).T) ** 2).sum(-1) / NOISE**2

    def posterior(self, element: Batch) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(GAIN) @ element.input, jnp.asarray(COVARIANCE)


class GaussianPosterior(nnx.Module):
    """N(gain y + shift, L Lᵀ); acts on the trailing axes and broadcasts over any others."""

    def __init__(self, gain: np.ndarray = GAIN, covariance: np.ndarray = COVARIANCE, shift: np.ndarray | float = 0.0):
        self.gain = nnx.Param(jnp.asarray(gain))
        self.root = nnx.Param(jnp.linalg.cholesky(jnp.asarray(covariance)))
        self.shift = nnx.Param(jnp.broadcast_to(jnp.asarray(shift, self.gain.dtype), (len(gain),)))

    def mean(self, batch: Batch) -> jax.Array:
        assert batch.target is None, "a gate showed the truth to the model"
        return batch.input @ self.gain[...].T + self.shift[...]

    def sample(self, batch: Batch, key: jax.Array, n: int) -> jax.Array:
        mean = self.mean(batch)
        noise = jax.random.normal(key, (*mean.shape[:-1], n, mean.shape[-1]), mean.dtype)
        return mean[..., None, :] + noise @ self.root[...].T

    def log_prob(self, x: jax.Array, batch: Batch) -> jax.Array:
        difference = x - self.mean(batch)
        return -0.5 * (jnp.linalg.solve(self.root[...], difference[..., None])[..., 0] ** 2).sum(-1)


class SamplesOnly:
    """A posterior without density whose first draw is NaN where the first observation exceeds a limit."""

    def __init__(self, limit: float = np.inf):
        self.inner, self.limit = GaussianPosterior(), limit

    def sample(self, batch: Batch, key: jax.Array, n: int) -> jax.Array:
        draws = self.inner.sample(batch, key, n)
        return draws.at[..., 0, 0].set(jnp.where(batch.input[..., 0] > self.limit, jnp.nan, draws[..., 0, 0]))


class WithoutDensity(SamplesOnly):
    """The same, which says itself that it has no density."""

    def log_prob(self, x: jax.Array, batch: Batch) -> jax.Array:
        raise NotImplementedError("its score is trained without a likelihood")


SD = np.sqrt(np.diag(COVARIANCE))
DEFECTS = {
    "sd × 0.8": lambda: GaussianPosterior(covariance=0.8**2 * COVARIANCE),
    "sd × 1.25": lambda: GaussianPosterior(covariance=1.25**2 * COVARIANCE),
    "mean + 0.3 sd": lambda: GaussianPosterior(shift=0.3 * SD),
    "sign of the mean flipped": lambda: GaussianPosterior(gain=-GAIN),
    "correlations dropped": lambda: GaussianPosterior(covariance=np.diag(SD**2)),
    "posterior = prior": lambda: GaussianPosterior(gain=0 * GAIN, covariance=np.eye(3)),
}


@pytest.fixture(scope="session")
def known() -> SimpleNamespace:
    """The simulators, the exact posterior, its parameters and the planted defects."""
    return SimpleNamespace(
        Implicit=Implicit,
        Gaussian=Gaussian,
        GaussianPosterior=GaussianPosterior,
        SamplesOnly=SamplesOnly,
        WithoutDensity=WithoutDensity,
        covariance=COVARIANCE,
        gain=GAIN,
        design=DESIGN,
        noise=NOISE,
        defects=DEFECTS,
    )


QUICK = ("sd × 0.8", "mean + 0.3 sd", "posterior = prior")  # the others take their turn with the slow tests


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in DEFECTS])
def defect(request: pytest.FixtureRequest) -> SimpleNamespace:
    """One planted defect after the other."""
    return SimpleNamespace(name=request.param, model=DEFECTS[request.param]())
