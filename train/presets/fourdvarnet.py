"""Learned solvers: of whole trajectories, from the linear interpolation of what is observed of them; of eddies under satellite tracks.

    python -m train fourdvarnet_l63 --run-dir runs/l63 && python -m eval.solver runs/l63 --windows 2000
    python -m train fourdvarnet_l96 --run-dir runs/l96 && python -m eval.solver runs/l96
    python -m train fourdvarnet_ssh --run-dir runs/ssh && python -m eval.solver runs/ssh --windows 64 --oi 0.2

Time: ten minutes of training (l63), three and a half (l96) and fifteen (ssh) on 2 CPU cores, less than a minute of judging; four with --oi.
Expect: mean square errors of 0.059 (l63; the mean of the posterior itself has 0.057) and 0.16 (l96), where the interpolation has 1.6
and 6.9. A root mean square error of 0.063 (ssh), 28 % below that of tuned optimal interpolation and 14 % below that of a Gaussian analysis
by the climate of the eddies; waves of 7.8 pixels are resolved, where these resolve 9.4 and 8.5.

The set-up is that of the published solver (Fablet et al. 2021): Lorenz-63 seen every 8 steps of 0.01, and a random half of Lorenz-96
every 4 steps of 0.05, with noise of variance 2. The learned descent sees the error of the known model. Newton's method finds its way
from the interpolation on Lorenz-63, where it comes first, and only from the learned descent on Lorenz-96, where it comes last.
"""

from train.config import Experiment
from vardax_flax.fourdvarnet import (
    ClimateConfig,
    ConvLSTMConfig,
    DynamicalPriorConfig,
    FourDVarNetConfig,
    IdentityPriorConfig,
    NewtonConfig,
)
from vardax_flax.simulators import QG2D, Lorenz63Trajectory, Lorenz96Trajectory
from vardax_flax.training import FitConfig, OptimConfig

LORENZ63 = Experiment(
    name="fourdvarnet_l63",
    simulator=Lorenz63Trajectory(),
    posterior=FourDVarNetConfig(
        prior=DynamicalPriorConfig(), modulator=ConvLSTMConfig(hidden=32, kernel_size=5), axes="time", n_solver_steps=10, alpha=0.1,
        prior_weight=10.0, newton=NewtonConfig(5, (0.03, 0.003), place="first"),
    ),
    fit=FitConfig(steps=4000, eval_every=500, held_out=256, optim=OptimConfig(learning_rate=2e-3)),
    batch_size=64,
)  # fmt: skip
LORENZ96 = Experiment(
    name="fourdvarnet_l96",
    simulator=Lorenz96Trajectory(),
    posterior=FourDVarNetConfig(
        prior=DynamicalPriorConfig(), modulator=ConvLSTMConfig(hidden=24), axes="space-time", periodic=True, n_solver_steps=8, alpha=1.0,
        prior_weight=2.0, patch=(40, 40), newton=NewtonConfig(8, (1.0, 0.05)),
    ),
    fit=FitConfig(steps=1500, eval_every=250, held_out=64, optim=OptimConfig(learning_rate=2e-3)),
    batch_size=8,
)  # fmt: skip
SSH = Experiment(
    name="fourdvarnet_ssh",
    simulator=QG2D(),
    posterior=FourDVarNetConfig(
        prior=IdentityPriorConfig(), modulator=ConvLSTMConfig(hidden=48, downsample=2), axes="space", periodic=True, n_solver_steps=5,
        alpha=0.3, climate=ClimateConfig(steps=64),
    ),
    fit=FitConfig(steps=1000, eval_every=200, held_out=32, optim=OptimConfig(learning_rate=2e-3, warmup_steps=50)),
    batch_size=8,
)  # fmt: skip
EXPERIMENTS = {experiment.name: experiment for experiment in (LORENZ63, LORENZ96, SSH)}
