"""A field of 64 × 64 pixels from fifteen days of satellite tracks: score diffusion in the coordinates of a few steps of an analysis.

    python -m train fields --run-dir runs/fields && python -m eval.bench fields runs/fields

Time: to be measured.
Expect: to be measured.
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
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100, ema_decay=0.99),
    ),  # fmt: skip
    gates=GatesConfig(n_runs=20, n_samples=9, coverage_runs=20),
    batch_size=8,
)
EXPERIMENTS = {EXPERIMENT.name: EXPERIMENT}
