"""How sharp the loss is, and how sharp the optimizer can bear."""

from lightning_topo.stability.hessian import Hessian, flatten, hessian
from lightning_topo.stability.lanczos import Extremes, extreme_eigenvalues
from lightning_topo.stability.scaling import ParameterScaling, parameter_scalings
from lightning_topo.stability.sharpness import (
    SharpnessEstimate,
    StabilityEstimate,
    sharpness,
    stability,
)

__all__ = [
    "Extremes",
    "Hessian",
    "ParameterScaling",
    "SharpnessEstimate",
    "StabilityEstimate",
    "extreme_eigenvalues",
    "flatten",
    "hessian",
    "parameter_scalings",
    "sharpness",
    "stability",
]
