"""A solver is trained, read back and judged by the scripts; a posterior is not taken for one, nor one for a posterior."""

import json

import jax
import numpy as np
import pytest

from eval.__main__ import main as judge_posterior
from eval.adjoint import main as judge_adjoints
from eval.orbits import posterior_mean
from eval.solver import OI, Row, main, verdict
from train.__main__ import main as train
from train.config import load_solver
from vardax_flax.core.config import ConfigError
from vardax_flax.fourdvarnet import NewtonConfig
from vardax_flax.simulators import Lorenz63Trajectory, Lorenz96Trajectory

FLAGS = [
    "--simulator.steps", "40", "--fit.steps", "4", "--fit.eval-every", "2", "--fit.held-out", "8", "--posterior.n-solver-steps", "2",
    "--posterior.modulator.hidden", "4", "--batch-size", "8", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "l63"
    assert train(["fourdvarnet_l63", "--run-dir", str(path), *FLAGS]) == 0
    return path


def test_a_trained_solver_is_judged(run_dir, capsys):
    assert main([str(run_dir), "--windows", "12", "--margin", "5"]) == 0
    shown = capsys.readouterr().out
    for row in ("analysis", "Newton alone", "interpolation in time", "constant", "climatology"):
        assert f"| {row}" in shown
    assert "passed: mean square error" in shown
    result = json.loads((run_dir / "solver.json").read_text())
    assert result["passed"] and result["windows"] == 12 and result["rows"]["analysis"]["mse"] > 0
    again = load_solver(run_dir)
    assert again.step in (2, 4) and again.experiment.name == "fourdvarnet_l63"


@pytest.mark.slow
def test_a_solver_of_fields_is_judged_beside_optimal_interpolation(tmp_path, capsys):
    small = ["--simulator.size", "16", "--simulator.days", "3", "--simulator.spinup-days", "2", "--posterior.climate.steps", "20"]
    path = tmp_path / "ssh"
    assert train(["fourdvarnet_ssh", "--run-dir", str(path), *FLAGS[2:], *small]) == 0
    code = main([str(path), "--windows", "8", "--oi", "-9"])
    shown = capsys.readouterr().out
    for row in ("analysis", "climate alone", "the same, 400 steps", "optimal interpolation", "the same, of each day", "climatology"):
        assert f"| {row}" in shown
    assert "resolved scale" in shown and "left out" not in shown
    result = json.loads((path / "solver.json").read_text())
    assert result["margin"] == 0 and result["rows"]["analysis"]["scale"] > 0 and result["passed"] == (code == 0)
    best, oi = (result["rows"][name]["mse"] for name in ("analysis", "optimal interpolation"))
    assert f"{100 * (1 - np.sqrt(best / oi)):.0f} % smaller than that of optimal interpolation" in shown
    np.testing.assert_allclose(result["rows"]["climate alone"]["mse"], result["rows"]["the same, 400 steps"]["mse"], rtol=0.2)


@pytest.mark.slow
def test_the_posterior_mean_is_no_worse_than_the_smoother():
    simulator = Lorenz63Trajectory()
    batch = jax.jit(jax.vmap(simulator.sample))(jax.random.split(jax.random.key(0), 24))
    mean, effective = posterior_mean(simulator, batch, jax.random.key(1))
    error = lambda x: np.square(np.asarray(x - batch.target))[:, 10:-10].mean()  # noqa: E731
    newton = NewtonConfig(5, (0.03, 0.003)).build((200, 3), simulator)
    newton.calibrate(batch)
    assert np.median(effective) > 100
    assert error(mean) < 1.1 * error(jax.jit(newton)(batch.target, batch))  # which starts from the truth, so in the right basin
    with pytest.raises(ConfigError, match="at most 3 components"):
        posterior_mean(Lorenz96Trajectory(steps=8), jax.vmap(Lorenz96Trajectory(steps=8).sample)(jax.random.split(jax.random.key(0), 2)), 0)


def test_its_adjoints_are_compared(run_dir, capsys):
    assert judge_adjoints([str(run_dir), "--windows", "2"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in shown.splitlines() if "|" in line}
    assert float(rows["all steps, everything kept"][0]) == 0 and float(rows["all steps, checkpoints"][0]) < 1e-4
    assert float(rows["last step"][0]) > 0.01 and float(rows["implicit, GMRES"][0]) > 0  # two steps have not converged


def test_a_solver_is_no_posterior(run_dir, tmp_path):
    with pytest.raises(ConfigError, match="expected a run of a posterior.*do run python -m eval.solver"):
        judge_posterior([str(run_dir)])
    with pytest.raises(ConfigError, match="margin below half"):
        main([str(run_dir), "--windows", "2", "--margin", "20"])
    with pytest.raises(ConfigError, match="configuration"):
        main([str(tmp_path)])


def test_the_verdict_wants_twice_as_good():
    near = "interpolation in time"
    rows = {"analysis": Row(np.full(4, 1.0), 0.1), "climatology": Row(np.full(4, 5.0), None), near: Row(np.full(4, 1.9), None)}
    passed, told = verdict(rows)
    assert not passed and "1.9 times smaller than that of interpolation" in told
    assert verdict({**rows, near: Row(np.full(4, 2.1), None)})[0]
    assert verdict({**rows, near: Row(np.full(4, 2.1), None), "posterior mean, 9 orbits a window": Row(np.full(4, 0.9), None)})[0]
    assert not verdict({**rows, "analysis": Row(np.full(4, np.nan), 0.1)})[0]
    rows = {**rows, near: Row(np.full(4, 9.0), None), OI: Row(np.full(4, 1.5625), None)}  # whose root is 1.25
    assert verdict(rows, 0.19)[0] and not verdict(rows, 0.21)[0]
    assert "20 % smaller than that of optimal interpolation, at least 21 % required" in verdict(rows, 0.21)[1]


def test_interpolation_is_for_fields(run_dir):
    with pytest.raises(ConfigError, match="windows of fields for --oi"):
        main([str(run_dir), "--windows", "4", "--oi", "0.2"])
