"""The curvature along one direction that matters: the optimizer's own step, or the swap of two neurons."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_topo.stability._hessian import Curvature
from lightning_topo.stability._optimizer_thresholds import ParameterThreshold
from lightning_topo.stability._parameter_thresholds import spread


def directional_ratio(curvature: Curvature, step: Float[Tensor, " p"]) -> float | None:
    """The overshoot of a step along its own direction, for any optimizer: the edge is at 1.

        Delta^T H Delta / (-2 g^T Delta)

    with g the gradient where the step `step` = Delta began. At 1 the quadratic model of the loss is as high at the
    step's end as at its beginning; at 1/2 the step ends in the minimum along its direction. `curvature` is that at the
    step's *end*, theta + Delta, where g there less H Delta stands for g: exact on a quadratic, and no second gradient
    is needed. One product. None where the step did not go downhill (-g^T Delta <= 0) or did not move at all.

    Source: Cohen et al., arXiv:2103.00065, appendix (the quadratic Taylor model of one step).
    """
    curved = float(step @ (curvature @ step))
    descent = curved - float(curvature.gradient @ step)
    return curved / (2.0 * descent) if descent > 0.0 else None


@dataclass(frozen=True, slots=True)
class SwapCurvature:
    """The curvature in the direction u = (e_i - e_j) (x) (x_i - x_j), along which two neurons change places.

    `curvature` is u^T H u / u^T u. `ratio` is |M (H + wd) u| / |u|, M = lr w / D: what the newest gradient contributes
    to |Delta_i - Delta_j| / |x_i - x_j|, the critical ratio of this pair; None where the optimizer is not known.
    """

    curvature: float
    ratio: float | None


def swap_curvature(
    curvature: Curvature, direction: Float[Tensor, " p"], thresholds: Sequence[ParameterThreshold] | None
) -> SwapCurvature:
    """The curvature along the swap direction of one pair of neurons, by one product.

    With P the swap, theta - P theta = u, and an equivariant gradient has g - P g = g(theta) - g(P theta) = H u for
    near neurons: for gradient descent `ratio` tends to the pair's own critical ratio as the two approach each other.

    Source: Yang et al., arXiv:2510.02670 (the bound by the Hessian between theta and P theta).
    """
    image, length = curvature @ direction, float(direction.norm())
    along = float(direction @ image) / length**2
    if thresholds is None:
        return SwapCurvature(along, None)
    step, decay = (
        spread([getattr(s, name) for s in thresholds], curvature.params) for name in ("step", "weight_decay")
    )
    return SwapCurvature(along, float((step * (image + decay * direction)).norm()) / length)
