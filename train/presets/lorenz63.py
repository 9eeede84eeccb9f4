"""Lorenz-63 window of 100 steps with 10 full observations and a known background: posterior of the initial state.

    python -m train lorenz63 --run-dir runs/lorenz63 && python -m eval runs/lorenz63

Time: 5 to 7 minutes of training on 2 CPU cores, one minute of gates.
Expect: held-out loss 1.84 nats; coverage and agreement pass; on the 32 reference windows the median distance of the means is 0.03
reference standard deviations and the median spread ratio 1.02. SBC passes its marginals and rejects the log-likelihood (p = 0.015): in a
few windows in a hundred the posterior bends so much that the answer is too wide.
"""

from train.config import Experiment, GatesConfig
from vardax_flax.encoders import InnovationEncoderConfig, MLPEncoderConfig
from vardax_flax.heads import FlowHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import Lorenz63
from vardax_flax.training import FitConfig, OptimConfig

EXPERIMENT = Experiment(
    name="lorenz63",
    simulator=Lorenz63(),
    posterior=AmortizedConfig(
        encoder=InnovationEncoderConfig(MLPEncoderConfig(features=64, width=256, depth=2), outer_loops=1, gauss_newton=True),
        head=FlowHeadConfig(layers=6, width=96, depth=2),
    ),
    fit=FitConfig(steps=9000, eval_every=1000, held_out=8192, optim=OptimConfig(learning_rate=1e-3)),
    gates=GatesConfig(reference="tests/data/l63_win_full.npz"),
)
