"""A tiny linear Gaussian posterior: does everything run? Seconds.

    python -m train debug --run-dir runs/debug && python -m eval runs/debug

Time: 3 s of training and 15 s of compiling, half a minute of gates, on 2 CPU cores.
Expect: held-out loss 1.365 nats; every gate passes; KL from the exact posterior 0.002 nats.
"""

from train.config import Experiment, GatesConfig
from vardax_flax.encoders import IdentityEncoderConfig
from vardax_flax.heads import RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import LinearGaussian
from vardax_flax.training import FitConfig, OptimConfig

EXPERIMENT = Experiment(
    name="debug",
    simulator=LinearGaussian.random(2, 2, seed=0, noise_std=0.5),
    posterior=AmortizedConfig(encoder=IdentityEncoderConfig(), head=RegressionHeadConfig(covariance="full", width=32)),
    fit=FitConfig(steps=1200, eval_every=300, checkpoint_every=300, held_out=8192, optim=OptimConfig(learning_rate=3e-3, warmup_steps=20)),
    gates=GatesConfig(n_runs=500, coverage_runs=500),
    batch_size=128,
)
EXPERIMENTS = {EXPERIMENT.name: EXPERIMENT}
