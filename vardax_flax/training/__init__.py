"""Training: one loop, exact resume, any number of devices."""

from vardax_flax.training.checkpoint import CheckpointError, Checkpoints
from vardax_flax.training.fit import FitConfig, FitResult, NonFiniteLossError, fit
from vardax_flax.training.losses import (
    amortized_nll_loss_fn,
    amortized_train_step,
    eval_step,
    reconstruction_loss,
    train_loss_fn,
    train_step,
)
from vardax_flax.training.optim import OptimConfig
from vardax_flax.training.rundir import open_run_dir, read_metrics
from vardax_flax.training.state import TrainState

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "FitConfig",
    "FitResult",
    "NonFiniteLossError",
    "OptimConfig",
    "TrainState",
    "amortized_nll_loss_fn",
    "amortized_train_step",
    "eval_step",
    "fit",
    "open_run_dir",
    "read_metrics",
    "reconstruction_loss",
    "train_loss_fn",
    "train_step",
]
