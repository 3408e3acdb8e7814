"""How sharp the loss is, and how sharp the optimizer can bear."""

from lightning_topo.stability.directions import SwapCurvature, directional_ratio, swap_curvature
from lightning_topo.stability.hessian import Curvature, Hessian, LossPart, SplitHessian, flatten, hessian, split_hessian
from lightning_topo.stability.lanczos import Extremes, extreme_eigenvalues
from lightning_topo.stability.scaling import ParameterScaling, awaits_first_step, parameter_scalings
from lightning_topo.stability.sharpness import (
    ScaledSharpness,
    SharpnessEstimate,
    StabilityEstimate,
    curvature_sharpness,
    scaled_sharpness,
    sharpness,
    stability,
)

__all__ = [
    "Curvature",
    "Extremes",
    "Hessian",
    "LossPart",
    "ParameterScaling",
    "ScaledSharpness",
    "SharpnessEstimate",
    "SplitHessian",
    "StabilityEstimate",
    "SwapCurvature",
    "awaits_first_step",
    "curvature_sharpness",
    "directional_ratio",
    "extreme_eigenvalues",
    "flatten",
    "hessian",
    "parameter_scalings",
    "scaled_sharpness",
    "sharpness",
    "split_hessian",
    "stability",
    "swap_curvature",
]
