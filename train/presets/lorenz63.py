"""Lorenz-63 window of 100 steps with 10 full observations and a known background: posterior of the initial state.

    python -m train lorenz63 --run-dir runs/lorenz63 && python -m eval runs/lorenz63

Time: a minute of training on 2 CPU cores, after 15 seconds of compilation; the gates five minutes.
Expect: held-out loss 1.757 nats (importance sampling puts the best possible at 1.741 ± 0.017 on the same windows); every gate passes,
SBC with little room (adjusted p 0.055, for x[2], by chance: raw p 0.83 on 16 000 windows of another key); on the 32 reference windows
the median distance of the means is 0.04 reference standard deviations and the median spread ratio 1.02. On 100 held-out windows RMSE 1.34,
4D-Var from eight starts 1.61.

The same window with other heads, by the same commands:
`lorenz63_score` draws by diffusion, `lorenz63_full` is a Gaussian of full covariance, both in the coordinates of the analysis;
`lorenz63_diagonal` is a diagonal Gaussian on the network's own view of the observations.
Expect: held-out losses of 1.758 for `lorenz63_full`, which passes every gate, and 4.411 for `lorenz63_diagonal`, which fails SBC, coverage
and agreement. `lorenz63_score` trains for three minutes, and its gates take ten, for every density is an ODE; on 2000 held-out windows its
mean log q is -1.769 (the flow's -1.771). It is judged on 8000 windows, where it passes SBC (p 0.25) and, narrowly, coverage (p 0.051);
coverage on the first 2000 of them alone rejects it (p 0.005, off by 3.4 %, where the flow is off by 2.8 %), on 2000 of another key it does
not (p 0.15).
"""

import dataclasses

from train.config import Experiment, GatesConfig
from vardax_flax.diffusion import EDM
from vardax_flax.encoders import AnalysisEncoderConfig, InnovationEncoderConfig, MLPEncoderConfig
from vardax_flax.heads import FlowHeadConfig, RegressionHeadConfig, ScoreHeadConfig
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.simulators import Lorenz63
from vardax_flax.training import FitConfig, OptimConfig

ANALYSIS = AnalysisEncoderConfig(MLPEncoderConfig(features=64, width=128, depth=1))
FLOW = Experiment(
    name="lorenz63",
    simulator=Lorenz63(),
    posterior=AmortizedConfig(encoder=ANALYSIS, head=FlowHeadConfig(layers=4, width=64)),
    fit=FitConfig(steps=2000, eval_every=200, held_out=8192, optim=OptimConfig(learning_rate=1e-3)),
    gates=GatesConfig(n_runs=4000, reference="tests/data/l63_win_full.npz"),
)


SCORE = ScoreHeadConfig(process=EDM(log_mean=-0.5, log_std=1.5), noises=16, width=64, depth=2)
OTHERS = {
    "lorenz63_score": AmortizedConfig(ANALYSIS, SCORE),
    "lorenz63_full": AmortizedConfig(ANALYSIS, RegressionHeadConfig(covariance="full")),
    "lorenz63_diagonal": AmortizedConfig(InnovationEncoderConfig(), RegressionHeadConfig(covariance="diagonal")),
}
EXPERIMENTS = {"lorenz63": FLOW} | {name: dataclasses.replace(FLOW, name=name, posterior=posterior) for name, posterior in OTHERS.items()}
EXPERIMENTS["lorenz63_score"] = dataclasses.replace(
    EXPERIMENTS["lorenz63_score"],
    fit=dataclasses.replace(FLOW.fit, steps=6000, eval_every=500),
    gates=dataclasses.replace(FLOW.gates, n_runs=8000, coverage_runs=8000),
)
