"""How to differentiate an inner iteration: memory, cost and exactness of the gradient by one argument."""

from vardax_flax.adjoints.strategies import (
    Adjoint,
    AdjointConfig,
    ImplicitAdjoint,
    KStepAdjoint,
    OneStepAdjoint,
    RecursiveCheckpointAdjoint,
    to_optimistix_adjoint,
)

ADJOINTS = {adjoint.kind: adjoint for adjoint in AdjointConfig.__args__}

__all__ = [
    "ADJOINTS",
    "Adjoint",
    "AdjointConfig",
    "ImplicitAdjoint",
    "KStepAdjoint",
    "OneStepAdjoint",
    "RecursiveCheckpointAdjoint",
    "to_optimistix_adjoint",
]
