"""The sharpness of the loss, and the largest sharpness at which an optimizer is stable."""

from lightning_topo.stability._batch_sharpness import (
    BatchSharpness,
    batch_sharpness,
    curvature_batch_sharpness,
    curvature_elsewhere,
)
from lightning_topo.stability._critical_sharpness import CriticalSharpness, critical_sharpness
from lightning_topo.stability._directions import SwapCurvature, directional_ratio, swap_curvature
from lightning_topo.stability._finite_differences import (
    Differentiate,
    FiniteDifferenceHessian,
    by_autograd,
    by_backward,
    finite_difference_hessian,
    split_finite_difference_hessian,
)
from lightning_topo.stability._hessian import (
    Curvature,
    Hessian,
    LossPart,
    NotTwiceDifferentiable,
    SplitHessian,
    hessian,
    split_hessian,
)
from lightning_topo.stability._lanczos import Extremes, LanczosSettings, extreme_eigenvalues
from lightning_topo.stability._layout import flatten
from lightning_topo.stability._optimizer_thresholds import ParameterThreshold
from lightning_topo.stability._parameter_thresholds import Thresholds, awaits_first_step, parameter_thresholds
from lightning_topo.stability._recognition import Recognised, recognised
from lightning_topo.stability._sharpness import (
    ScaledSharpness,
    SharpnessEstimate,
    curvature_sharpness,
    scaled_sharpness,
    sharpness,
)

__all__ = [
    "BatchSharpness",
    "CriticalSharpness",
    "Curvature",
    "Differentiate",
    "Extremes",
    "FiniteDifferenceHessian",
    "Hessian",
    "LanczosSettings",
    "LossPart",
    "NotTwiceDifferentiable",
    "ParameterThreshold",
    "Recognised",
    "ScaledSharpness",
    "SharpnessEstimate",
    "SplitHessian",
    "SwapCurvature",
    "Thresholds",
    "awaits_first_step",
    "batch_sharpness",
    "by_autograd",
    "by_backward",
    "critical_sharpness",
    "curvature_batch_sharpness",
    "curvature_elsewhere",
    "curvature_sharpness",
    "directional_ratio",
    "extreme_eigenvalues",
    "finite_difference_hessian",
    "flatten",
    "hessian",
    "parameter_thresholds",
    "recognised",
    "scaled_sharpness",
    "sharpness",
    "split_finite_difference_hessian",
    "split_hessian",
    "swap_curvature",
]
