"""The curvature along one direction that matters: the optimizer's own step, or the swap of two neurons."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_topo.stability._hessian import Curvature
from lightning_topo.stability._optimizer_thresholds import ParameterThreshold


def directional_ratio(curvature: Curvature, step: Float[Tensor, " p"]) -> float | None:
    """Compute by how much a step overshoots the minimum along its own direction; the edge of stability is at 1:

        Delta^T H Delta / (-2 g^T Delta),

    with Delta the step, H the Hessian, and g the gradient where the step began. On a quadratic loss, at 1 the loss is
    as high after the step as before; at 1/2 the step ends in the minimum along its direction. The formula holds for
    any optimizer, and takes one product. Returns None if the step did not go downhill (-g^T Delta <= 0), or did not
    move.

    Args:
        curvature: The Hessian at the *end* of the step. Its gradient minus H Delta serves as g, which is exact on a
            quadratic loss.
        step: Delta, flat.

    Source: Cohen et al., arXiv:2103.00065, appendix (the quadratic Taylor model of one step).
    """
    curved = curvature.layout.dot(step, curvature @ step)
    descent = curved - curvature.layout.dot(curvature.gradient, step)
    return curved / (2.0 * descent) if descent > 0.0 else None


@dataclass(frozen=True, slots=True)
class SwapCurvature:
    """The curvature of the loss along the direction u in which two neurons of a group change places.

    u is x_i - x_j in the entries of neuron i and x_j - x_i in those of neuron j, x being their parameters; it is 0
    elsewhere.

    Attributes:
        curvature: u^T H u / u^T u, with H the Hessian.
        ratio: |M (H + wd) u| / |u|: the part of |Delta_i - Delta_j| / |x_i - x_j|, this pair's term in the critical
            ratio, that comes from the newest gradient. M is `step` and wd `weight_decay` of `ParameterThreshold`. None
            if no thresholds were given.
    """

    curvature: float
    ratio: float | None


def swap_curvature(
    curvature: Curvature, direction: Float[Tensor, " p"], thresholds: Sequence[ParameterThreshold] | None
) -> SwapCurvature:
    """Compute the curvature along the direction in which two neurons change places, by one product.

    Under gradient descent, as two neurons come near each other, `ratio` tends to |Delta_i - Delta_j| / |x_i - x_j|.
    x_i is neuron i before the step, Delta_i its displacement. This is so because exchanging the two neurons moves the
    parameters from theta to theta' = theta - u, and the gradients at both differ by H u to first order.

    Args:
        curvature: The Hessian.
        direction: The flat direction u of `SwapCurvature`, not 0.
        thresholds: The optimizer's threshold for each of `curvature.params`; None leaves `ratio` None.

    Source: Yang et al., arXiv:2510.02670 (the bound by the Hessian between theta and theta').
    """
    layout = curvature.layout
    image, length = curvature @ direction, layout.norm(direction)
    along = layout.dot(direction, image) / length**2
    if thresholds is None:
        return SwapCurvature(along, None)
    step, decay = (layout.spread([getattr(s, name) for s in thresholds]) for name in ("step", "weight_decay"))
    return SwapCurvature(along, layout.norm(step * (image + decay * direction)) / length)
