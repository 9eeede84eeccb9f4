"""Fifteen days of a field of 64 × 64 pixels from satellite tracks: a learned solver, and a posterior around its analysis.

    python -m train gp2d_solver --run-dir runs/gp2d_solver && python -m eval.bench fields runs/gp2d_solver
    python -m train gp2d --run-dir runs/gp2d && python -m eval.bench fields runs/gp2d

Time: 16 minutes of training on 2 CPU cores that are shared with others, half a minute of draws.
Expect: on the middle day of four stored samples, with 64 draws, an RMSE of the mean 1.02 times that of the exact posterior and a CRPS 1.08
times; 92 % of the pixels within the central 90 % (89 % of the exact posterior's), spread / skill 1.12. The held-out loss is -73852.
Without scales of long waves it is -72985, and 85 % are within 90 %: errors are of longer waves where few tracks pass.
The gates of `python -m eval` draw and weigh 61440 numbers at a time: they are set to their smallest sizes, and can tell little.
"""

from train.config import Experiment, GatesConfig
from vardax_flax.diffusion import EDM
from vardax_flax.fourdvarnet import ClimateConfig, ConvLSTMConfig, FourDVarNetConfig, IdentityPriorConfig, SolverEncoderConfig
from vardax_flax.heads import ScoreHeadConfig
from vardax_flax.nn import UNetConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import Tracks2D
from vardax_flax.training import FitConfig, OptimConfig

SIMULATOR = Tracks2D(target="window")
NET = UNetConfig(channels=(32, 32, 64, 64))  # wide enough at the top for fifteen days
HEAD = ScoreHeadConfig(process=EDM(sigma_min=0.02, sigma_max=30.0, log_mean=0.0, log_std=1.2), steps=12, net=NET, long_waves=3)
SOLVER = FourDVarNetConfig(
    prior=IdentityPriorConfig(), modulator=ConvLSTMConfig(hidden=32, downsample=2), axes="space", periodic=True, n_solver_steps=4,
    alpha=0.3, climate=ClimateConfig(steps=112),
)  # fmt: skip
FIT = FitConfig(
    steps=1000, eval_every=200, held_out=32, checkpoint_every=200,
    optim=OptimConfig(learning_rate=2e-3, warmup_steps=100, clip_norm=None, ema_decay=0.99),
)  # fmt: skip
ALONE = Experiment(name="gp2d_solver", simulator=SIMULATOR, posterior=SOLVER, fit=FIT, batch_size=8)
POSTERIOR = Experiment(
    name="gp2d",
    simulator=SIMULATOR,
    posterior=AmortizedConfig(encoder=SolverEncoderConfig(SOLVER), head=HEAD),
    fit=FIT,
    gates=GatesConfig(n_runs=20, n_samples=9, coverage_runs=20),
    batch_size=8,
)
EXPERIMENTS = {experiment.name: experiment for experiment in (ALONE, POSTERIOR)}
