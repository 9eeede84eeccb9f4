"""Two moons of the public inference benchmark: a bimodal, crescent-shaped posterior of two parameters.

    python -m train two_moons --run-dir runs/two_moons && python -m eval runs/two_moons

Time: a minute and a half of training on 2 CPU cores, two minutes of gates (most of it the C2ST classifiers).
Expect: held-out loss -3.76 nats; SBC, coverage and agreement pass; mean C2ST over the 5 reference observations 0.52.
"""

from train.config import Experiment, GatesConfig
from vardax_flax.encoders import IdentityEncoderConfig
from vardax_flax.heads import FlowHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import TwoMoons
from vardax_flax.training import FitConfig, OptimConfig

EXPERIMENT = Experiment(
    name="two_moons",
    simulator=TwoMoons(),
    posterior=AmortizedConfig(encoder=IdentityEncoderConfig(), head=FlowHeadConfig(layers=8, width=64, depth=2)),
    fit=FitConfig(steps=20_000, eval_every=1000, held_out=8192, optim=OptimConfig(learning_rate=1e-3)),
    gates=GatesConfig(reference="tests/data/two_moons.npz"),
)
EXPERIMENTS = {EXPERIMENT.name: EXPERIMENT}
