"""The learned solver: an inner cost, a descent whose steps are learned, and an adjoint of choice."""

from vardax_flax.fourdvarnet.assemblies import (
    ConvLSTMGradMod1D,
    ConvLSTMGradMod2D,
    FourDVarNet1D,
    FourDVarNet2D,
    one_step_solve_4dvarnet_1d,
    one_step_solve_4dvarnet_2d,
    solve_4dvarnet_1d_fixedpoint,
    solve_4dvarnet_2d_fixedpoint,
)
from vardax_flax.fourdvarnet.climate import ClimateAnalysis, ClimateConfig
from vardax_flax.fourdvarnet.encoder import SolverEncoder, SolverEncoderConfig
from vardax_flax.fourdvarnet.layout import Layout
from vardax_flax.fourdvarnet.model import FourDVarNet, FourDVarNetConfig, Solution, SolverLoss
from vardax_flax.fourdvarnet.modulators import (
    AttentionModulator,
    AttentionModulatorConfig,
    ConvLSTMConfig,
    ConvLSTMModulator,
    IdentityModulator,
    IdentityModulatorConfig,
    LSTMState1D,
    LSTMState2D,
    MLPModulator,
    MLPModulatorConfig,
    Modulator,
    ModulatorConfig,
)
from vardax_flax.fourdvarnet.newton import NewtonConfig, NewtonSteps
from vardax_flax.fourdvarnet.patches import overlap_add, random_patch
from vardax_flax.fourdvarnet.priors import (
    BilinearPrior,
    BilinearPriorConfig,
    ConvPrior,
    ConvPriorConfig,
    DensePrior,
    DynamicalPrior,
    DynamicalPriorConfig,
    IdentityPrior,
    IdentityPriorConfig,
    MLPPriorConfig,
    Prior,
    PriorConfig,
    UNetPrior,
    UNetPriorConfig,
)

PRIORS = {config.kind: config for config in PriorConfig.__args__}
MODULATORS = {config.kind: config for config in ModulatorConfig.__args__}

__all__ = [
    "MODULATORS",
    "PRIORS",
    "AttentionModulator",
    "AttentionModulatorConfig",
    "BilinearPrior",
    "BilinearPriorConfig",
    "ClimateAnalysis",
    "ClimateConfig",
    "ConvLSTMConfig",
    "ConvLSTMGradMod1D",
    "ConvLSTMGradMod2D",
    "ConvLSTMModulator",
    "ConvPrior",
    "ConvPriorConfig",
    "DensePrior",
    "DynamicalPrior",
    "DynamicalPriorConfig",
    "FourDVarNet",
    "FourDVarNet1D",
    "FourDVarNet2D",
    "FourDVarNetConfig",
    "IdentityModulator",
    "IdentityModulatorConfig",
    "IdentityPrior",
    "IdentityPriorConfig",
    "LSTMState1D",
    "LSTMState2D",
    "Layout",
    "MLPModulator",
    "MLPModulatorConfig",
    "MLPPriorConfig",
    "Modulator",
    "ModulatorConfig",
    "NewtonConfig",
    "NewtonSteps",
    "Prior",
    "PriorConfig",
    "Solution",
    "SolverEncoder",
    "SolverEncoderConfig",
    "SolverLoss",
    "UNetPrior",
    "UNetPriorConfig",
    "one_step_solve_4dvarnet_1d",
    "one_step_solve_4dvarnet_2d",
    "overlap_add",
    "random_patch",
    "solve_4dvarnet_1d_fixedpoint",
    "solve_4dvarnet_2d_fixedpoint",
]
