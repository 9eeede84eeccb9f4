"""Windows of Lorenz-96 whose Laplace posterior has the right standard deviations and a wrong joint distribution, beside Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.assimilation.cases import lorenz96
from vardax_flax.assimilation import IncrementalFourDVar, LaplaceCovariance
from vardax_flax.core.batch import Batch
from vardax_flax.simulators import Lorenz96
from vardax_flax.validation import posterior_agreement

WINDOWS, CHAINS, SITES, STEPS = 12, 8, 40, 20
BURN_IN, KEPT, THIN = 40, 120, 2


def twins():
    """B = R = I; every second site is observed at every second step."""
    rng = np.random.default_rng(0)
    states = Lorenz96().attractor()
    background = states[rng.choice(len(states), WINDOWS, replace=False)].astype(float)
    truth = background + rng.normal(size=background.shape)
    series = jax.jit(jax.vmap(lambda x: jax.lax.scan(lambda x, _: (lorenz96(x),) * 2, x, length=STEPS)[1]))(jnp.asarray(truth))
    mask = np.zeros((WINDOWS, STEPS, SITES))
    mask[:, 1::2, ::2] = 1
    return Batch(input=series + rng.normal(size=series.shape), mask=mask, background=background)


def potential(x, element):
    """−log p(x | y) up to a constant, written out a second time."""
    _, series = jax.lax.scan(lambda x, _: (lorenz96(x),) * 2, x, length=STEPS)
    return 0.5 * jnp.square(x - element.background).sum() + 0.5 * (element.mask * jnp.square(element.input - series)).sum()


def hamiltonian(energy, z, key, iterations, leaps=8, step=0.2):
    """Hamiltonian Monte Carlo of one chain (Neal 2011, *MCMC using Hamiltonian dynamics*): all states, and the share accepted."""
    slope = jax.grad(energy)

    def iterate(z, key):
        jitter, push, accept = jax.random.split(key, 3)
        size = step * jax.random.uniform(jitter, minval=0.8, maxval=1.2)
        start = jax.random.normal(push, z.shape)

        def leap(state, _):
            z, p = state
            p = p - 0.5 * size * slope(z)
            z = z + size * p
            return (z, p - 0.5 * size * slope(z)), None

        (end, p), _ = jax.lax.scan(leap, (z, start), length=leaps)
        gain = energy(z) - energy(end) + 0.5 * (jnp.square(start).sum() - jnp.square(p).sum())
        taken = jnp.log(jax.random.uniform(accept)) < gain
        z = jnp.where(taken, end, z)
        return z, (z, taken)

    _, (states, taken) = jax.lax.scan(iterate, z, jax.random.split(key, iterations))
    return states, taken.mean()


@pytest.mark.slow
def test_the_gate_sees_a_wrong_joint_behind_right_marginals(x64):
    batch = twins()
    method = IncrementalFourDVar((SITES,), lorenz96, background_cov=1.0, obs_cov=1.0, observed_at_start=False)
    mode = method.solve(batch).state
    hessian = jax.jit(jax.vmap(jax.hessian(potential)))(mode, batch)
    cov = np.linalg.inv(hessian)
    sd = np.sqrt(np.einsum("nii->ni", cov))
    np.testing.assert_allclose(method.posterior(batch, LaplaceCovariance()).std, sd, rtol=1e-6)
    root = jnp.linalg.cholesky(cov)

    def chain(key, mode, root, element):
        begin, rest = jax.random.split(key)
        energy = lambda z: potential(mode + root @ z, element)  # noqa: E731
        states, accepted = hamiltonian(energy, jax.random.normal(begin, (SITES,)), rest, BURN_IN + KEPT)
        return states[BURN_IN::THIN] @ root.T + mode, accepted

    keys = jax.random.split(jax.random.key(0), (WINDOWS, CHAINS))
    each = jax.vmap(jax.vmap(chain, (0, None, None, None)))
    # most of the time goes into running it: here the compiler does all it can, unlike for other tests
    run = jax.jit(each, compiler_options={"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False})
    chains, accepted = map(np.asarray, run(keys, mode, root, batch))  # (windows, chains, kept, sites)
    assert accepted.mean() > 0.8
    draws = chains.reshape(WINDOWS, -1, SITES)
    assert 0.95 < (sd / draws.std(axis=1)).mean() < 1.05  # measured: 1.00
    departure = draws - np.asarray(mode)[:, None]
    distance = np.einsum("wni,wij,wnj->wn", departure, np.asarray(hessian), departure).mean(axis=1)
    assert 47 < distance.mean() < 60  # of a Gaussian: 40; measured: 53 ± 7 over windows
    # the same chains on a Gaussian: their draws are independent enough for the gate
    keys = jax.random.split(jax.random.key(1), (WINDOWS, CHAINS))
    begin = jax.random.normal(jax.random.key(2), (WINDOWS, CHAINS, SITES))
    normal, _ = jax.jit(jax.vmap(jax.vmap(lambda z, key: hamiltonian(lambda z: 0.5 * z @ z, z, key, BURN_IN + KEPT))))(begin, keys)
    exact = np.zeros((WINDOWS, SITES)), np.tile(np.eye(SITES), (WINDOWS, 1, 1))
    assert posterior_agreement(exact, np.asarray(normal)[:, :, BURN_IN::THIN].reshape(WINDOWS, -1, SITES), level=0.05).passed
    tolerant, equal = (posterior_agreement((np.asarray(mode), cov), draws, level=level) for level in (None, 0.05))
    assert tolerant.passed and equal.passed is False
    # the mean is near in every component, and off in a thin direction
    assert tolerant.statistic == 0 and "squared distance of the means" in equal.summary
