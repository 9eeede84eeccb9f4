"""The six steps on a model that was really trained: physics, exact oracle, a fitted emulator, the oracle with it, the trained head."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.__main__ import main as judge
from eval.events import held_out
from eval.steps import FILE, parts_of
from train.__main__ import main as train
from train.config import load_run, save_experiment
from vardax_flax.simulators import LinearGaussian
from vardax_flax.training import Checkpoints
from vardax_flax.training.state import init_state
from vardax_flax.validation import forward_agreement, posterior_agreement
from vardax_flax.validation.six_step import SixStepReport, fingerprint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    where = tmp_path_factory.mktemp("six_steps") / "debug"
    assert train(["debug", "--run-dir", str(where), "--quiet"]) == 0
    return where


@pytest.fixture(scope="module")
def validated(run_dir):
    """The run after all six steps: those of the emulator by hand, the others by the gates."""
    trained = load_run(run_dir)
    simulator = trained.experiment.simulator
    batch = held_out(simulator, trained.experiment.gates, 100)
    states = jax.random.normal(jax.random.key(1), (64, 2))
    outputs = jax.vmap(simulator.predict)(states)
    fitted = np.linalg.lstsq(np.c_[states, np.ones(64)], outputs, rcond=None)[0][:2].T  # the emulator: learned from runs alone
    emulated = LinearGaussian.from_arrays(simulator.prior_mean, simulator.prior_cov, fitted, simulator.noise_cov)
    parts = parts_of(trained.experiment, trained.posterior) | {"emulator": fingerprint(jnp.asarray(fitted))}
    third = forward_agreement(emulated.predict, simulator.predict, batch.target)
    exact, with_emulator = (jax.jit(jax.vmap(s.posterior))(batch) for s in (simulator, emulated))
    fourth = posterior_agreement(with_emulator, exact, strict=True)
    report = SixStepReport().record(3, [third], parts).record(4, [fourth], parts)
    report.save(run_dir / FILE)
    assert judge([str(run_dir)]) == 0
    return run_dir


def verdicts(run_dir):
    report = SixStepReport.load(run_dir / FILE)
    return [report.step(n).verdict for n in range(1, 7)]


def test_all_six_steps_pass_on_a_trained_model(validated, capsys):
    assert verdicts(validated) == ["passed"] * 6
    assert judge([str(validated), "--stale"]) == 0
    assert "stale:" not in capsys.readouterr().out
    report = json.loads((validated / "report.json").read_text())
    table = next(table for table in report["tables"] if table["title"] == "Six steps")
    assert [row[1] for row in table["rows"]] == ["passed"] * 6
    for page in ("report.md", "report.html"):
        text = (validated / page).read_text()
        assert "oracle with the emulator" in text and "amortization ratio" in text


def changed(validated, tmp_path, change):
    """What is stale in a copy of the run whose experiment was changed."""
    trained = load_run(validated)
    parts = parts_of(change(trained.experiment), trained.posterior)
    del parts["emulator"]
    return set(SixStepReport.load(validated / FILE).stale(parts))


def test_a_new_observation_operator_sends_back_three(validated, tmp_path):
    def change(experiment):
        operator = tuple(tuple(2 * value for value in row) for row in experiment.simulator.operator)
        return dataclasses.replace(experiment, simulator=dataclasses.replace(experiment.simulator, operator=operator))

    assert changed(validated, tmp_path, change) == {2, 4, 5}


def test_new_physics_send_back_four(validated, tmp_path):
    def change(experiment):
        return dataclasses.replace(experiment, simulator=dataclasses.replace(experiment.simulator, prior_mean=(1.0, 2.0)))

    assert changed(validated, tmp_path, change) == {2, 3, 4, 5}


def test_a_head_that_knows_only_the_prior_is_stale_and_fails(validated, tmp_path, capsys):
    trained = load_run(validated)
    _, like = init_state(trained.experiment.build(), trained.experiment.fit.optim.build(trained.experiment.fit.steps))
    with Checkpoints(validated / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(like)
    params = jax.tree.map(jnp.asarray, state.best_params)
    last = params["head"]["gaussian"]["net"]["last"]
    last["kernel"], last["bias"] = jnp.zeros_like(last["kernel"]), jnp.zeros_like(last["bias"])  # N(0, I), standardised
    planted = tmp_path / "planted"
    planted.mkdir()
    save_experiment(trained.experiment, planted)
    (planted / FILE).write_text((validated / FILE).read_text())
    with Checkpoints(planted / "checkpoints") as checkpoints:
        checkpoints.save(state._replace(best_params=params), wait=True)
    assert judge([str(planted), "--stale"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("stale: ") == 1 and "5 amortized head | passed | stale: new head" in shown
    assert judge([str(planted)]) == 1
    assert "FAILED       skill: " in capsys.readouterr().out
    assert verdicts(planted) == ["passed", "passed", "passed", "passed", "failed", "failed"]
