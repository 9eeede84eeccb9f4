"""Classical oracles: variational analyses with honest covariances, by any model, operator and covariance."""

from vardax_flax.assimilation.bases import eof_basis, fourier_basis, wavelet_basis
from vardax_flax.assimilation.covariance import Blocks, Covariance, Diagonal, Kronecker, LowRankPlusDiagonal, Matern, as_covariance, dense
from vardax_flax.assimilation.cycle import Cycle, Cycled, MultiStart, multi_start
from vardax_flax.assimilation.ensemble import EnsembleCycle, EnsembleCycled, Hybrid, Localised
from vardax_flax.assimilation.methods import Analysis, NotConverged, OptimalInterpolation, ThreeDVar, VariationalMethod
from vardax_flax.assimilation.models import DiffraxStep, repeat
from vardax_flax.assimilation.observation import Fusion, Identity, Interpolation, Linear, ObservationOperator, Tangent, linearize
from vardax_flax.assimilation.posterior import EnsembleCovariance, Gaussian, GaussNewtonHessian, LaplaceCovariance, Provenance
from vardax_flax.assimilation.solve import GaussNewton, QuasiNewton, Solve, Status, describe
from vardax_flax.assimilation.windows import IncrementalFourDVar, LatentFourDVar, StrongFourDVar, WeakFourDVar

__all__ = [
    "Analysis",
    "Blocks",
    "Covariance",
    "Cycle",
    "Cycled",
    "Diagonal",
    "DiffraxStep",
    "EnsembleCovariance",
    "EnsembleCycle",
    "EnsembleCycled",
    "Fusion",
    "GaussNewton",
    "GaussNewtonHessian",
    "Gaussian",
    "Hybrid",
    "Identity",
    "IncrementalFourDVar",
    "Interpolation",
    "Kronecker",
    "LaplaceCovariance",
    "LatentFourDVar",
    "Linear",
    "Localised",
    "LowRankPlusDiagonal",
    "Matern",
    "MultiStart",
    "NotConverged",
    "ObservationOperator",
    "OptimalInterpolation",
    "Provenance",
    "QuasiNewton",
    "Solve",
    "Status",
    "StrongFourDVar",
    "Tangent",
    "ThreeDVar",
    "VariationalMethod",
    "WeakFourDVar",
    "as_covariance",
    "dense",
    "describe",
    "eof_basis",
    "fourier_basis",
    "linearize",
    "multi_start",
    "repeat",
    "wavelet_basis",
]
