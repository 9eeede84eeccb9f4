"""Amortized Bayesian inference and data assimilation in JAX and Flax NNX, with posteriors that are proven by gates.

    simulator ──► stream ──► fit(estimator) ──► gates ──► report

Example:
    >>> simulator = Lorenz63()
    >>> posterior = AmortizedConfig(encoder=InnovationEncoderConfig(), head=FlowHeadConfig()).build(simulator, nnx.Rngs(0))
    >>> fit(posterior, SeedStream(simulator, batch_size=256), FitConfig(steps=5000))
    >>> assert_sbc(simulation_based_calibration(posterior, simulator, key=jax.random.key(1)))
    >>> draws = posterior.sample(batch, jax.random.key(2), 1000)
"""

from vardax_flax.core.batch import Batch, Batch1D, Batch2D, Batch2DMultivar, check_batch
from vardax_flax.core.config import ConfigError
from vardax_flax.core.interfaces import (
    AnalysisStep,
    Conjugate,
    ControlVariable,
    DensityHead,
    Encoder,
    Estimator,
    Head,
    LogJoint,
    Physics,
    Posterior,
    Simulator,
)
from vardax_flax.encoders import (
    AnalysisEncoder,
    AnalysisEncoderConfig,
    ControlEncoderConfig,
    Conv1DEncoderConfig,
    Conv2DEncoderConfig,
    IdentityEncoderConfig,
    InnovationEncoder,
    InnovationEncoderConfig,
    MLPEncoderConfig,
)
from vardax_flax.heads import (
    ConditionalFlowHead,
    FlowHeadConfig,
    RegressionHead,
    RegressionHeadConfig,
    ScoreDiffusionHead,
    ScoreHeadConfig,
)
from vardax_flax.nn import UNetConfig
from vardax_flax.posteriors import AmortizedConfig, AmortizedPosterior
from vardax_flax.report import write_report
from vardax_flax.simulators import (
    LinearGaussian,
    Lorenz63,
    Lorenz63Climatology,
    Lorenz96,
    Lorenz96Climatology,
    Tracks2D,
    TwoMoons,
    from_functions,
)
from vardax_flax.streams import ArrayStream, RecordStream, SeedStream, WorkerStream, read_records, write_records
from vardax_flax.training import (
    FitConfig,
    FitResult,
    OptimConfig,
    amortized_nll_loss_fn,
    amortized_train_step,
    eval_step,
    fit,
    reconstruction_loss,
    train_loss_fn,
    train_step,
)
from vardax_flax.validation import (
    GateResult,
    assert_coverage,
    assert_posterior_agreement,
    assert_sbc,
    c2st,
    coverage,
    posterior_agreement,
    simulation_based_calibration,
)

__version__ = "0.1.0"

__all__ = [
    "AmortizedConfig",
    "AmortizedPosterior",
    "AnalysisStep",
    "ArrayStream",
    "Batch",
    "Batch1D",
    "Batch2D",
    "Batch2DMultivar",
    "ConditionalFlowHead",
    "ConfigError",
    "Conjugate",
    "ControlEncoderConfig",
    "ControlVariable",
    "Conv1DEncoderConfig",
    "Conv2DEncoderConfig",
    "DensityHead",
    "Encoder",
    "Estimator",
    "FitConfig",
    "FitResult",
    "FlowHeadConfig",
    "GateResult",
    "Head",
    "IdentityEncoderConfig",
    "AnalysisEncoder",
    "AnalysisEncoderConfig",
    "InnovationEncoder",
    "InnovationEncoderConfig",
    "LinearGaussian",
    "LogJoint",
    "Lorenz63",
    "Lorenz63Climatology",
    "Lorenz96",
    "Lorenz96Climatology",
    "MLPEncoderConfig",
    "OptimConfig",
    "Physics",
    "Posterior",
    "RecordStream",
    "RegressionHead",
    "RegressionHeadConfig",
    "ScoreDiffusionHead",
    "ScoreHeadConfig",
    "SeedStream",
    "Simulator",
    "Tracks2D",
    "TwoMoons",
    "UNetConfig",
    "WorkerStream",
    "amortized_nll_loss_fn",
    "amortized_train_step",
    "assert_coverage",
    "assert_posterior_agreement",
    "assert_sbc",
    "c2st",
    "check_batch",
    "coverage",
    "eval_step",
    "fit",
    "from_functions",
    "posterior_agreement",
    "read_records",
    "reconstruction_loss",
    "simulation_based_calibration",
    "train_loss_fn",
    "train_step",
    "write_records",
    "write_report",
]
