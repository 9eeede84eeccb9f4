"""Heads without likelihood: what their losses are least for, quantiles that do not cross, and what is not to be had from them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

from eval.__main__ import main as judge
from eval.sbc import main as sbc
from tests.perturb import noise, perturb
from train import presets
from train.config import load_run
from vardax_flax.core.config import ConfigError
from vardax_flax.heads import PointHeadConfig, QuantileHeadConfig

C, KEY = 2, jax.random.key(0)


def trained(config, x, steps=1500):
    """The head at the least of its loss over skewed numbers x `(n, dim)` that the context says nothing about."""
    head = config.build(x.shape[-1], C, nnx.Rngs(0))
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)
    context, optimizer = jnp.zeros(C), optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: nnx.merge(graphdef, p, rest).loss(x, context, KEY).mean())(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0][0])
    return nnx.merge(graphdef, run((params, optimizer.init(params))), rest), context


def test_each_rule_is_least_for_what_it_names():
    """The minimisers of the three losses are statistics of the numbers themselves, so nothing but the optimisation is inexact."""
    x = jnp.exp(0.8 * noise(2001, 2)) * jnp.array([1.0, 0.3])
    head, context = trained(PointHeadConfig("squared", width=4, depth=1), x)
    np.testing.assert_allclose(head.mode(context, KEY), x.mean(axis=0), rtol=5e-3)
    head, context = trained(PointHeadConfig("absolute", width=4, depth=1), x)
    np.testing.assert_allclose(head.mode(context, KEY), np.median(x, axis=0), rtol=5e-3)
    head, context = trained(QuantileHeadConfig(levels=(0.1, 0.5, 0.9), width=4, depth=1), x)
    np.testing.assert_allclose(head.quantiles(context).T, np.quantile(x, (0.1, 0.5, 0.9), axis=0), rtol=1e-2)
    np.testing.assert_allclose(head.mode(context, KEY), np.median(x, axis=0), rtol=1e-2)


def test_quantiles_never_cross_and_draws_have_them():
    wild, head = (perturb(QuantileHeadConfig(width=8).build(3, C, nnx.Rngs(0)), scale) for scale in (1.0, 0.2))
    context = noise(50, C)
    assert (np.diff(wild.quantiles(3 * context), axis=-1) >= 0).all()  # where a slope is too small for the rounding, equal
    at = np.asarray(head.quantiles(context))
    assert (np.diff(at, axis=-1) > 0).all() and at.std(axis=0).min() > 0.1
    n = 20_000
    draws = np.asarray(head.sample(context[:2], KEY, n))
    below = (draws[:, :, :, None] <= at[:2, None]).mean(axis=1)
    levels = np.array(head.levels)
    assert (abs(below - levels) < 5 * np.sqrt(levels * (1 - levels) / n)).all()
    np.testing.assert_allclose(np.corrcoef(draws[0].T), np.eye(3), atol=5 / np.sqrt(n) * 1.5)  # independent, as the docstring says


def test_an_untrained_quantile_head_is_standard_normal_far_into_its_tails():
    head = QuantileHeadConfig().build(1, C, nnx.Rngs(0))
    np.testing.assert_allclose(head.quantiles(jnp.ones(C))[0], stats.norm.ppf(head.levels), atol=1e-6)
    draws = np.asarray(head.sample(jnp.ones(C), KEY, 20_000))[:, 0]
    assert stats.kstest(draws, "norm").pvalue > 1e-3 and abs(draws).max() > 3.5


@pytest.mark.parametrize("levels", [(0.5,), (0.1, 0.9), (0.5, 0.9), (0.1, 0.5), (0.5, 0.1, 0.9), (0.0, 0.5, 1.0), (0.1, 0.5, 0.5, 0.9)])
def test_levels_that_make_no_sense_are_refused(levels):
    with pytest.raises(ConfigError, match="expected levels that grow within .*, got .*; do "):
        QuantileHeadConfig(levels=levels)


@pytest.mark.parametrize(
    "config",
    [QuantileHeadConfig(width=16), PointHeadConfig(width=16)],
    ids=lambda c: c.kind,
)
@pytest.mark.slow
def test_a_run_is_judged_by_what_it_can_answer(config, tmp_path, monkeypatch, script):
    """Trained, saved, loaded and judged as any other; a gate that needs what is not there is skipped and says so."""
    from train.__main__ import main as train

    debug = presets.PRESETS["debug"]
    experiment = dataclasses.replace(debug, posterior=dataclasses.replace(debug.posterior, head=config))
    monkeypatch.setitem(presets.PRESETS, "debug", experiment)
    assert script(train, "debug", "--run-dir", tmp_path / "run", "--quiet").code == 0
    run = load_run(tmp_path / "run")
    assert run.experiment.posterior.head == config
    batch = jax.jit(jax.vmap(run.experiment.simulator.sample))(jax.random.split(KEY, 300))
    mean, cov = jax.vmap(run.experiment.simulator.posterior)(batch)
    error = np.asarray(run.posterior(batch) - mean) / np.sqrt(np.diagonal(np.asarray(cov), axis1=1, axis2=2))
    assert np.sqrt(np.mean(error**2)) < 0.2
    with pytest.raises(NotImplementedError, match=f"expected a head with a density, got '{config.kind}'; do use sample or model"):
        run.posterior.log_prob(batch.target, batch)
    judged = script(judge, tmp_path / "run", "--out", tmp_path / "out")
    gates = {gate["name"]: gate for gate in json.loads((tmp_path / "out" / "report.json").read_text())["gates"]}
    assert f"a {config.kind} head has no density" in gates["KL from the exact posterior"]["summary"] or config.kind == "point"
    if config.kind == "point":
        assert judged.code == 0 and gates.pop("physics forward")["passed"]
        assert all("a point head has no draws" in gate["summary"] for gate in gates.values())
        refused = script(sbc, tmp_path / "run")
        assert refused.code == 2 and "expected a head that draws, got 'point'" in refused.err
        with pytest.raises(NotImplementedError, match="expected a head that draws, got 'point'; do call model"):
            run.posterior.sample(batch, KEY, 2)
    else:
        assert gates["sbc"]["passed"] is not None and gates["coverage"]["passed"] is not None
