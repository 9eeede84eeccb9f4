"""A field on a line from up to 12 noisy observations at random places: a Gaussian expert for each, and the exact posterior is known.

    python -m train gp_sites --run-dir runs/gp_sites && python -m eval runs/gp_sites

Time: three and a half minutes of training on 2 CPU cores that are shared with others.
Expect: held-out loss -0.781 nats, against -0.786 of the exact posterior on the same simulations (a difference of 0.005 ± 0.001); every gate
passes; KL from the exact posterior 0.0044 nats (bound 0.01).
"""

from train.config import Experiment
from vardax_flax.encoders import ProductOfExpertsEncoderConfig
from vardax_flax.heads import RegressionHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import GaussianSites
from vardax_flax.training import FitConfig, OptimConfig

EXPERIMENT = Experiment(
    name="gp_sites",
    simulator=GaussianSites(),
    posterior=AmortizedConfig(
        encoder=ProductOfExpertsEncoderConfig(), head=RegressionHeadConfig(covariance="diagonal", width=16), allow_unobserved=True
    ),
    fit=FitConfig(steps=4000, eval_every=500, held_out=8192, optim=OptimConfig(learning_rate=3e-3)),
)
EXPERIMENTS = {EXPERIMENT.name: EXPERIMENT}
