"""What one training run is: a simulator, a posterior, how to feed and fit it, and how it will be judged.

An `Experiment` is written to `config.json` of the run directory, and with the checkpoints beside it everything a run is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx

from vardax_flax.core.config import as_json, load_json, require, to_dict
from vardax_flax.core.interfaces import Estimator, Observing
from vardax_flax.fourdvarnet import FourDVarNet, FourDVarNetConfig, SolvedAnalysisEncoderConfig, SolverEncoderConfig
from vardax_flax.posteriors import Amortized, AmortizedConfig
from vardax_flax.simulators import SimulatorConfig
from vardax_flax.streams import RecordStream, ResimulatedStream, SeedStream, Stream
from vardax_flax.training import Checkpoints, FitConfig
from vardax_flax.training.rundir import CHECKPOINTS, CONFIG, write_atomically
from vardax_flax.training.state import init_state, load_into

Solving = SolverEncoderConfig | SolvedAnalysisEncoderConfig


@dataclasses.dataclass(frozen=True)
class GatesConfig:
    """How the trained posterior is judged.

    Args:
        n_runs: simulations of SBC.
        n_samples: posterior draws of each; n_samples + 1 divisible by 100 suits the χ² bins.
        coverage_runs: simulations of the coverage gate.
        level: family-wise error of each gate.
        seed: of the gates' simulations, which no training seed can produce.
        reference: npz of observations with independent posteriors, relative to the project; None if there is none.
    """

    n_runs: int = 1000
    n_samples: int = 99
    coverage_runs: int = 2000
    level: float = 0.05
    seed: int = 0
    reference: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("n_runs", 20), ("n_samples", 9), ("coverage_runs", 20)):
            require(getattr(self, name) >= least, f"{name} >= {least}", getattr(self, name), "pass more")
        require(0 < self.level < 1, "0 < level < 1", self.level, "pass such a level")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run, complete.

    Args:
        name: of the preset.
        simulator: where data come from.
        posterior: encoder and head; or a learned solver, which answers with a state alone.
        fit: steps, evaluation, optimiser.
        gates: how it is judged.
        batch_size: global.
        data_seed: of the simulations.
        seed: of the initial weights.
        records: directory of offline simulations to train on; None simulates on the device.
        validation_fraction: of offline simulations.
        observe_anew: give stored states fresh noise and gaps at every step.
        start_from: directory of a run of the learned solver in the encoder, whose weights it starts from; None starts anew.
    """

    name: str
    simulator: SimulatorConfig
    posterior: AmortizedConfig | FourDVarNetConfig = dataclasses.field(default_factory=AmortizedConfig)
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    gates: GatesConfig = dataclasses.field(default_factory=GatesConfig)
    batch_size: int = 256
    data_seed: int = 0
    seed: int = 0
    records: str | None = None
    validation_fraction: float = 0.1
    observe_anew: bool = False
    start_from: str | None = None

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "batch_size > 0", self.batch_size, "pass a positive size")
        require(0 < self.validation_fraction < 1, "0 < validation_fraction < 1", self.validation_fraction, "pass such a fraction")
        able = not self.observe_anew or (self.records is not None and isinstance(self.simulator, Observing))
        got = f"{self.simulator.kind}, records {self.records}"
        require(able, "records, and a simulator that observes a given state, for observe_anew", got, "leave it out")

    def build(self) -> Estimator:
        """The untrained posterior or solver."""
        return self.posterior.build(self.simulator, nnx.Rngs(self.seed))

    def begin(self) -> Estimator:
        """The same, with the solver that it starts from.

        Raises:
            ConfigError: an encoder without a solver, no run there, or one of another solver.
        """
        estimator = self.build()
        if self.start_from is None:
            return estimator
        encoder = getattr(self.posterior, "encoder", None)
        got = getattr(encoder, "kind", None)
        require(isinstance(encoder, Solving), "an encoder with a learned solver, to start from the run of one", got, "leave start_from out")
        assert isinstance(encoder, Solving)
        trained = load_solver(Path(self.start_from))
        same = to_dict(trained.experiment.posterior) == to_dict(encoder.solver) and trained.experiment.simulator == self.simulator
        require(same, f"the run of this very solver and simulator in {self.start_from}", "one of another", "train the same")
        nnx.update(estimator.encoder.solver, nnx.state(trained.solver))  # type: ignore[attr-defined]
        return estimator

    def stream(self) -> Stream:
        """The simulations it trains on."""
        if self.records is None:
            return SeedStream(self.simulator, self.batch_size, self.data_seed)
        stream = RecordStream(self.records, self.batch_size, self.data_seed, self.validation_fraction)
        made_by, simulator = stream.manifest.fingerprint, to_dict(self.simulator)
        require(made_by == simulator, f"records simulated by {simulator}", made_by, "simulate them with this preset and these flags")
        held_out = round(self.validation_fraction * stream.manifest.n)
        require(held_out > 0, "held-out simulations in the records", "none", "store more or raise validation_fraction")
        if not self.observe_anew:
            return stream
        assert isinstance(self.simulator, Observing)
        return ResimulatedStream(stream, self.simulator)


class SolverRun(NamedTuple):
    """A run of a learned solver read from disk: its experiment, and the solver with its best parameters, which are those of `step`."""

    experiment: Experiment
    solver: FourDVarNet
    step: int


class Run(NamedTuple):
    """A run read from disk: its experiment, and the posterior with its best parameters, which are those of `step`."""

    experiment: Experiment
    posterior: Amortized
    step: int


def save_experiment(experiment: Experiment, run_dir: Path) -> None:
    """Write `config.json`, at once: a run killed here keeps the one it had."""
    write_atomically(run_dir / CONFIG, as_json(experiment))


def load_experiment(run_dir: Path) -> Experiment:
    """Read `config.json`."""
    return load_json(Experiment, run_dir / CONFIG)


def load_run(run_dir: Path) -> Run:
    """The trained posterior of a run directory, without its training data.

    Raises:
        ConfigError: no run there, or one of a solver.
        CheckpointError: no readable checkpoint.
    """
    experiment, posterior, step = _load(run_dir)
    do = f"run python -m eval.solver {run_dir}"
    require(isinstance(posterior, Amortized), "a run of a posterior, with draws to judge", f"one of a {experiment.posterior.kind}", do)
    assert isinstance(posterior, Amortized)
    return Run(experiment, posterior, step)


def load_solver(run_dir: Path) -> SolverRun:
    """The trained solver of a run directory, without its training data.

    Raises:
        ConfigError: no run there, or one of a posterior.
        CheckpointError: no readable checkpoint.
    """
    experiment, solver, step = _load(run_dir)
    require(isinstance(solver, FourDVarNet), "a run of a learned solver", "one of a posterior", f"run python -m eval {run_dir}")
    assert isinstance(solver, FourDVarNet)
    return SolverRun(experiment, solver, step)


def _load(run_dir: Path) -> tuple[Experiment, Estimator, int]:
    experiment = load_experiment(run_dir)
    require((run_dir / CHECKPOINTS).is_dir(), f"checkpoints in {run_dir}", "none", "train first")
    estimator = experiment.build()
    _, like = init_state(estimator, experiment.fit.optim.build(experiment.fit.steps))
    with Checkpoints(run_dir / CHECKPOINTS, read_only=True) as checkpoints:
        state = checkpoints.restore(like)
    load_into(estimator, state)
    return experiment, estimator, int(state.best_step if np.isfinite(state.best_loss) else state.step)
