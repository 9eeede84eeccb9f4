"""An experiment on disk is the experiment."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.slow import mostly_slow
from train.__main__ import main as train
from train.config import Experiment, load_experiment, load_run, load_solver, save_experiment
from train.presets import PRESETS, describe_presets, load_preset
from vardax_flax.core.config import ConfigError, to_dict
from vardax_flax.fourdvarnet import FourDVarNet


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name, tmp_path):
    experiment = load_preset(name)
    assert experiment.name == name
    save_experiment(experiment, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert load_experiment(tmp_path) == experiment
    json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)
    assert f"  {name} " in describe_presets()


@mostly_slow("name", PRESETS, ["debug", "lorenz63", "gp_sites", "sbi_two_moons"])
def test_every_preset_builds_on_what_it_simulates(name):
    experiment = load_preset(name)
    built = experiment.build()
    shape = built.layout.state if isinstance(built, FourDVarNet) else built.state_shape
    assert shape == experiment.simulator.spec.target.shape
    assert experiment.stream().batch_size == experiment.batch_size


def test_saving_keeps_the_old_configuration_when_it_fails(tmp_path, monkeypatch):
    save_experiment(load_preset("debug"), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_experiment(load_preset("two_moons"), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_values_are_checked():
    simulator = load_preset("debug").simulator
    for bad in ({"batch_size": 0}, {"validation_fraction": 0.0}, {"validation_fraction": 1.0}, {"observe_anew": True}):
        with pytest.raises(ConfigError, match=rf"expected .*{next(iter(bad))}.*, got .*; do "):
            Experiment("x", simulator, **bad)
    assert to_dict(Experiment("x", simulator))["batch_size"] == 256


@pytest.mark.slow
def test_a_posterior_starts_from_a_trained_solver(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    small = ["--simulator.n-sites", "8", "--simulator.steps", "4", "--batch-size", "16", "--fit.held-out", "16", "--quiet"]
    steps = ["--fit.steps", "4", "--fit.eval-every", "2"]
    assert train(["lorenz96_first", "--run-dir", str(first), *small, *steps]) == 0
    with pytest.raises(ConfigError, match="this very solver and simulator"):
        train(["lorenz96_solver", "--run-dir", str(second), "--start-from", str(first), *small[4:], *steps])
    with pytest.raises(ConfigError, match="configuration"):
        train(["lorenz96_solver", "--run-dir", str(second), "--start-from", str(tmp_path / "none"), *small, *steps])
    with pytest.raises(ConfigError, match="encoder with a learned solver"):
        train(["lorenz96", "--run-dir", str(second), "--start-from", str(first), *small, *steps])
    experiment = dataclasses.replace(PRESETS["lorenz96_solver"], simulator=load_solver(first).experiment.simulator, start_from=str(first))
    trained, begun = nnx.state(load_solver(first).solver), nnx.state(experiment.begin().encoder.solver)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(trained), nnx.to_pure_dict(begun))
    assert train(["lorenz96_solver", "--run-dir", str(second), "--start-from", str(first), *small, *steps]) == 0
    assert load_run(second).posterior.encoder.solver.scale.std[...] == load_solver(first).solver.scale.std[...]
