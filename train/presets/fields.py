"""A field of 64 × 64 pixels from fifteen days of satellite tracks: score diffusion in the coordinates of a few steps of an analysis.

    python -m train fields --run-dir runs/fields && python -m eval.bench fields runs/fields

Time: 4 minutes of training on 2 CPU cores, 12 if they are shared with others; 2 minutes of draws.
Expect: held-out loss -2845 nats; on four stored samples with 64 draws an RMSE of the mean 1.085 times that of the exact posterior, spread /
skill 0.96. The gradient is not clipped: with a norm of 5 the loss ends at -2767 nats, spread / skill at 0.94.
The gates of `python -m eval` draw and weigh 4096 numbers at a time: they are set to their smallest sizes, and still take long.
"""

from train.config import Experiment, GatesConfig
from vardax_flax.diffusion import EDM
from vardax_flax.encoders import ControlEncoderConfig
from vardax_flax.heads import ScoreHeadConfig
from vardax_flax.nn import UNetConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import Tracks2D
from vardax_flax.training import FitConfig, OptimConfig

EXPERIMENT = Experiment(
    name="fields",
    simulator=Tracks2D(),
    posterior=AmortizedConfig(
        encoder=ControlEncoderConfig(steps=32),
        head=ScoreHeadConfig(process=EDM(sigma_min=0.02, sigma_max=30.0, log_mean=0.0, log_std=1.2), steps=12, net=UNetConfig()),
    ),
    fit=FitConfig(
        steps=1000, eval_every=200, held_out=32, checkpoint_every=200,
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100, clip_norm=None, ema_decay=0.99),
    ),  # fmt: skip
    gates=GatesConfig(n_runs=20, n_samples=9, coverage_runs=20),
    batch_size=8,
)
EXPERIMENTS = {EXPERIMENT.name: EXPERIMENT}
