"""The loop against closed forms: what it minimises, which parameters it keeps, when it stops, what it writes."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.slow import mostly_slow
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError
from vardax_flax.ops import gaussian
from vardax_flax.streams import ArrayStream
from vardax_flax.training import NonFiniteLossError, fit
from vardax_flax.training.parallel import make_mesh, make_train_chunk, replicate, shard
from vardax_flax.training.state import init_state

fit_module = importlib.import_module("vardax_flax.training.fit")  # the package's attribute of that name is the function


@pytest.mark.slow
def test_the_loss_falls_to_that_of_the_exact_posterior(parts):
    config = parts.config(steps=1500, eval_every=500, held_out=2048, steps_per_dispatch=50, optim={"schedule_steps": 1500})
    posterior, stream = parts.posterior(), parts.stream()
    held_out = stream.held_out(2048)
    initial = float(posterior.loss(held_out, jax.random.key(0))[0])
    result = fit(posterior, stream, config, progress=False)
    mean, cov = jax.vmap(parts.simulator.posterior)(held_out)
    exact = -float(gaussian.log_prob(held_out.target, mean, jnp.linalg.cholesky(cov)).mean())
    assert result.best_loss < initial - 0.5
    # in expectation the difference is the KL from the exact posterior, never below 0 but for the finite held-out set
    assert -0.01 < result.best_loss - exact < 0.03
    assert result.best_loss == pytest.approx(float(posterior.loss(held_out, jax.random.key(0))[0]), abs=1e-5)
    assert result.best_loss == min(line["held_out"] for line in result.history)
    assert (result.status, result.step, len(result.history)) == ("finished", 1500, 3)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(posterior)))


def test_the_estimator_keeps_the_parameters_of_the_best_evaluation(parts):
    # training pulls w past 0.3, where the held-out loss is lowest, to 1
    stream = parts.Pull(lambda step: 1.0, held_out=0.3)
    optim = {"learning_rate": 2e-2, "schedule": "constant", "ema_decay": 0.5, "warmup_steps": 0}
    long = parts.Mean()
    result = fit(long, stream, parts.config(steps=60, eval_every=5, optim=optim), progress=False)
    assert 5 < result.best_step < 60
    best = min(result.history, key=lambda line: line["held_out"])
    assert (result.best_step, result.best_loss) == (best["step"], best["held_out"])
    assert result.best_loss == pytest.approx((float(long.w[...]) - 0.3) ** 2, abs=1e-7)
    # a run that ends there has the same average, and has nothing better either
    short = parts.Mean()
    assert fit(short, stream, parts.config(steps=result.best_step, eval_every=5, optim=optim), progress=False).best_step == result.best_step
    parts.assert_same(parts.weights(long), parts.weights(short))


def test_patience_counts_evaluations_without_improvement(parts):
    # every step moves w away from the held-out target: the first evaluation is the best
    config = parts.config(steps=100, patience=3, optim={"schedule": "constant"})
    result = fit(parts.Mean(), parts.Pull(lambda step: 1.0, held_out=0.0), config, progress=False)
    assert (result.status, result.best_step, result.step) == ("stopped early", 10, 40)
    assert [line["step"] for line in result.history] == [10, 20, 30, 40]
    assert set(result.timings) == {"until the first step", "compile", "train"} and min(result.timings.values()) > 0


def test_a_run_that_stopped_early_stays_stopped_when_resumed(parts, tmp_path):
    config, stream = parts.config(steps=100, patience=1, optim={"schedule": "constant"}), parts.Pull(lambda step: 1.0)
    first = fit(parts.Mean(), stream, config, run_dir=tmp_path, progress=False)
    again = fit(parts.Mean(), stream, config, run_dir=tmp_path, resume=True, progress=False)
    assert (again.status, again.step) == (first.status, first.step) == ("stopped early", 20)


def test_average_and_gradient_step_follow_their_formulas(parts):
    # gradient descent on (w − 1)² with rate r: w ← w − 2 r (w − 1); average with decay min(d, (1 + k) / (10 + k))
    graphdef, state = init_state(parts.Mean(), optax.sgd(0.1))
    mesh = make_mesh(jax.devices()[:1])
    stream = parts.Pull(lambda step: 1.0)
    chunk = make_train_chunk(graphdef, optax.sgd(0.1), stream.materialize, mesh, seed=0, ema_decay=0.5)
    rows = slice(0, 8)
    payload = shard(jax.tree.map(lambda *leaves: np.stack(leaves), *(stream.payload(k, rows) for k in range(12))), mesh)
    state, sums = chunk(replicate(state, mesh), payload, np.int32(0), np.int32(12))
    w = ema = loss = 0.0
    for k in range(12):
        loss += (w - 1) ** 2
        w -= 0.1 * 2 * (w - 1)
        decay = min(0.5, (1 + k) / (10 + k))
        ema = decay * ema + (1 - decay) * w
    assert float(state.params["w"]) == pytest.approx(w, rel=1e-6)
    assert float(state.ema["w"]) == pytest.approx(ema, rel=1e-6)
    assert float(sums["loss"]) == pytest.approx(loss, rel=1e-5)
    assert int(state.step) == 12


@pytest.mark.slow
def test_dispatch_sizes_change_no_bit(parts, monkeypatch, tmp_path):
    states, sizes = [], []
    for name, limit, payload_bytes in (("one", 1, None), ("seven", 7, None), ("fifty", 50, None), ("bytes", 50, 3 * 64 * 8)):
        if payload_bytes:
            monkeypatch.setattr(fit_module, "PAYLOAD_BYTES", payload_bytes)
        config = parts.config(steps=25, steps_per_dispatch=limit)  # 25: the last chunk is cut short
        sizes.append(fit_module._steps_per_dispatch(config, parts.stream(), slice(0, 64)))
        fit(parts.posterior(), parts.stream(), config, run_dir=tmp_path / name, progress=False)
        states.append(parts.state(tmp_path / name, parts.posterior(), config))
    assert sizes == [1, 5, 10, 2]
    for other in states[1:]:
        parts.assert_same(states[0], other)


def test_metrics_lines_are_json_without_nan(parts, tmp_path):
    seen = []
    result = fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(), run_dir=tmp_path, on_metrics=seen.append, progress=False)
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert lines == result.history == seen
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert all(set(line) == {"step", "held_out", "loss", "w", "grad_norm", "steps_per_second"} for line in lines)
    # means over the interval, not sums: the diagnostic lies between the values at its ends
    assert all(0 < line["w"] < 1 and line["grad_norm"] < 2 for line in lines)
    summary = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert (summary["status"], summary["step"], summary["parameters"], summary["devices"]) == ("finished", 40, 1, jax.device_count())


@mostly_slow("where", [7, 0, 13, 39])
def test_a_loss_that_is_not_finite_stops_at_its_step(parts, tmp_path, where):
    config = parts.config(optim={"schedule": "constant"})
    estimator = parts.Mean()
    with pytest.raises(NonFiniteLossError, match=rf"at step {where}, got .*checkpoint {where}\)"):
        fit(estimator, parts.Pull(lambda step: np.nan if step == where else 1.0), config, run_dir=tmp_path, progress=False)
    assert np.isfinite(estimator.w[...])
    saved = parts.state(tmp_path, parts.Mean(), config)
    assert int(saved.step) == where
    # the saved state is that of a run which ends just there, and the repaired run goes on from it
    clean = tmp_path / "clean"
    if where:
        until = parts.config(steps=where, optim={"schedule": "constant"})
        fit(parts.Mean(), parts.Pull(lambda step: 1.0), until, run_dir=clean, progress=False)
        parts.assert_same(saved.params, parts.state(clean, parts.Mean(), until).params)
    assert fit(parts.Mean(), parts.Pull(lambda step: 1.0), config, run_dir=tmp_path, resume=True, progress=False).status == "finished"


def test_a_gradient_that_is_not_finite_stops_too(parts):
    estimator = parts.Mean(kink=True)
    with pytest.raises(NonFiniteLossError, match="gradient at step 0"):
        fit(estimator, parts.Pull(lambda step: 1.0), parts.config(), progress=False)
    assert float(estimator.w[...]) == 0.0


def test_a_held_out_loss_that_is_not_finite_stops_too(parts, tmp_path):
    estimator = parts.Mean()
    with pytest.raises(NonFiniteLossError, match=r"held-out loss at step 10, got nan .*checkpoint 10\)"):
        fit(estimator, parts.Pull(lambda step: 1.0, held_out=np.nan), parts.config(), run_dir=tmp_path, progress=False)
    assert np.isfinite(estimator.w[...])


def test_stored_simulations_hold_out_as_many_as_there_are(parts):
    stream = parts.stream()
    data = Batch(*(None if f is None else np.asarray(f) for f in stream.held_out(500)))
    result = fit(parts.posterior(), ArrayStream(data, batch_size=64), parts.config(held_out=10_000), progress=False)
    assert np.isfinite(result.best_loss)
    with pytest.raises(ConfigError, match=r"expected held-out simulations, got none; do "):
        fit(parts.posterior(), ArrayStream(data, batch_size=64, validation_fraction=0.0), parts.config(), progress=False)
    with pytest.raises(ConfigError, match=r"expected at least one simulation, got 0; do "):
        ArrayStream(Batch(*(None if f is None else f[:0] for f in data)), batch_size=64)


@pytest.mark.parametrize("bad", ["steps", "eval_every", "held_out", "checkpoint_every", "steps_per_dispatch", "patience"])
def test_sizes_must_be_positive(parts, bad):
    with pytest.raises(ConfigError, match=rf"expected {bad} > 0.*, got -1; do "):
        parts.config(**{bad: -1})


def test_bad_arguments_leave_the_run_that_is_there(parts, tmp_path):
    stream = parts.Pull(lambda step: 1.0)
    fit(parts.Mean(), stream, parts.config(), run_dir=tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    data = Batch(*(np.ones((8, 1), np.float32) for _ in range(3)))
    with pytest.raises(ConfigError, match="held-out"):
        fit(parts.Mean(), ArrayStream(data, 8, validation_fraction=0.0), parts.config(), run_dir=tmp_path, overwrite=True, progress=False)
    with pytest.raises(ConfigError, match="do pass --resume, --overwrite"):
        fit(parts.Mean(), stream, parts.config(), run_dir=tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"expected steps >= 40, .*, got 20; do "):
        fit(parts.Mean(), stream, parts.config(steps=20), run_dir=tmp_path, resume=True, progress=False)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
