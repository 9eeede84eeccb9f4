"""Counters and keys of simulations made on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.streams.walk import Walk
from vardax_flax.core.config import ConfigError
from vardax_flax.streams import MAX_STEPS, Domain, SeedStream, counters, keys_of


def test_no_two_simulations_share_a_key():
    steps = [*range(60), 2**16, 2**29, MAX_STEPS - 1]
    pairs = np.concatenate([counters(domain, step, slice(0, 1024)) for domain in Domain for step in steps])
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    words = np.concatenate([jax.random.key_data(keys_of(seed, jnp.asarray(pairs))) for seed in (0, 1)])
    assert len(np.unique(words, axis=0)) == len(words) == 2 * len(Domain) * 63 * 1024


def test_a_key_depends_on_its_counter_alone():
    pairs = counters(Domain.GATES, 11, slice(0, 64))
    words = np.asarray(jax.random.key_data(keys_of(5, jnp.asarray(pairs))))
    np.testing.assert_array_equal(jax.random.key_data(keys_of(5, jnp.asarray(pairs[10:20][::-1]))), words[10:20][::-1])


def test_domains_of_held_out_data_differ():
    stream = SeedStream(Walk(), 4, seed=0)
    draws = [np.asarray(stream.held_out(16, domain).target) for domain in Domain]
    assert len(np.unique(np.concatenate(draws), axis=0)) == 16 * len(Domain)


def test_steps_beyond_the_counter_are_refused():
    with pytest.raises(ConfigError, match="got 1073741824"):
        counters(Domain.TRAIN, MAX_STEPS, slice(0, 1))
