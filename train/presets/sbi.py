"""The ten tasks of a public benchmark of simulation-based inference (Lueckmann et al. 2021), all with one configuration.

    python -m train sbi_slcp --run-dir runs/slcp && python -m eval runs/slcp
    python -m eval.bench sbi --simulations 10000

The first trains on fresh simulations, the second scores every task on a fixed number of them.
Time: three and a half minutes of training on 2 CPU cores; the benchmark, all tasks, about two hours, most of it for the classifiers.
Expect: with 10 000 simulations, mean C2ST over five observations 0.526 for two_moons, 0.531 for gaussian_linear, 0.797 for slcp.
"""

import numpy as np

from train.config import Experiment, GatesConfig
from vardax_flax.diffusion import EDM
from vardax_flax.encoders import IdentityEncoderConfig
from vardax_flax.heads import ScoreHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import (
    SIR,
    SLCP,
    BernoulliGLM,
    BernoulliGLMRaw,
    GaussianLinearUniform,
    GaussianMixture,
    LinearGaussian,
    LotkaVolterra,
    SimulatorConfig,
    SLCPDistractors,
    TwoMoons,
)
from vardax_flax.training import FitConfig, OptimConfig

TENTH = 0.1 * np.eye(10)
TASKS: dict[str, SimulatorConfig] = {
    "two_moons": TwoMoons(),
    "gaussian_linear": LinearGaussian.from_arrays(np.zeros(10), TENTH, np.eye(10), TENTH),
    "gaussian_linear_uniform": GaussianLinearUniform(),
    "gaussian_mixture": GaussianMixture(),
    "slcp": SLCP(),
    "slcp_distractors": SLCPDistractors(),
    "bernoulli_glm": BernoulliGLM(),
    "bernoulli_glm_raw": BernoulliGLMRaw(),
    "sir": SIR(),
    "lotka_volterra": LotkaVolterra(),
}
STORED = ("two_moons", "gaussian_linear", "slcp")  # tasks with reference draws under tests/data


def experiment(task: str) -> Experiment:
    """The experiment of a task."""
    return Experiment(
        name=f"sbi_{task}",
        simulator=TASKS[task],
        posterior=AmortizedConfig(
            IdentityEncoderConfig(), ScoreHeadConfig(process=EDM(log_mean=-2.0, log_std=1.5), width=256, depth=4, affine=False), members=2
        ),
        fit=FitConfig(steps=8000, eval_every=250, held_out=1000, optim=OptimConfig(learning_rate=5e-4, weight_decay=0.3)),
        gates=GatesConfig(reference=f"tests/data/{task}.npz" if task in STORED else None),
        batch_size=200,
    )


EXPERIMENTS = {f"sbi_{task}": experiment(task) for task in TASKS}
