"""The curvature that minibatch training settles at: that of a step's own batch, along the batch's own gradient."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_topo.stability._hessian import Curvature, hessian
from lightning_topo.stability._optimizer_thresholds import ParameterThreshold
from lightning_topo.stability._parameter_thresholds import spread


@dataclass(frozen=True, slots=True)
class BatchSharpness:
    """g^T H g / g^T g of one batch, and its ratio to an optimizer's plateaus.

    - `small` is the ratio to the plateau of small batches, whose gradients are independent; `large` the ratio to the
      plateau of large batches, whose gradients are equal.
    - `noise` is the share of the curvature that other batches do not have, from 0 to 1.
    - `ratio` is noise * small + (1 - noise) * large, 1 at the edge of stability.

    `small`, `large` and `ratio` are None if no threshold is known.
    """

    value: float
    noise: float
    small: float | None = None
    large: float | None = None

    @property
    def ratio(self) -> float | None:
        """noise * small + (1 - noise) * large."""
        if self.small is None or self.large is None:
            return None
        return self.noise * self.small + (1.0 - self.noise) * self.large


def batch_sharpness(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    thresholds: Sequence[ParameterThreshold] | None = None,
    *,
    noise: float = 1.0,
) -> BatchSharpness:
    """The batch sharpness of the loss on one batch, by one Hessian-vector product.

    Args:
        loss_fn: Evaluates the loss on the batch.
        params: The parameters to differentiate by.
        thresholds: The optimizer's threshold for each parameter, as in `parameter_thresholds(...).parameters`.
        noise: The share of the curvature that other batches do not have: 1 minus the mean of `curvature_elsewhere`.
            The default 1 is for batches that have nothing in common.

    Raises as `hessian`, and `ValueError` unless 0 <= noise <= 1; see `curvature_batch_sharpness`.

    >>> import torch
    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> round(batch_sharpness(lambda: theta[0] ** 2 + 3 * theta[1] ** 2, [theta]).value, 4)
    5.8919
    """
    return curvature_batch_sharpness(hessian(loss_fn, params), thresholds, noise=noise)


def curvature_batch_sharpness(
    curvature: Curvature, thresholds: Sequence[ParameterThreshold] | None = None, *, noise: float = 1.0
) -> BatchSharpness:
    """`batch_sharpness` of a Hessian that is already built.

        value = b = g^T H g / g^T g,    small = g^T T H T g / (2 g^T T g),    large = g^T S H S g / g^T S g

    `ParameterThreshold` defines T (`total`) and S (`stability`). For SGD with momentum mu, small = b lr / 2(1-mu) and
    large = b lr / 2(1+mu). For Adam and its like, b is taken of the preconditioned Hessian along the preconditioned
    gradient. If T or S varies between entries, each takes one more product. All are 0 if the gradient is 0.

    Raises `ValueError` unless 0 <= noise <= 1.

    Derivation: docs/edge.md. Source: Andreyev and Beneventano, arXiv:2412.20553; arXiv:2604.14108 (momentum).
    """
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"expected a share of noise from 0 to 1, got {noise}")
    gradient = curvature.gradient
    if thresholds is None:
        return BatchSharpness(_along(gradient, gradient, curvature @ gradient), noise)
    image = curvature @ gradient
    value = _along(gradient, gradient, image)
    del image
    found = []
    for name in ("total", "stability"):
        # One after the other: where parameters are many, each vector counts.
        sizes = spread([getattr(each, name) for each in thresholds], curvature.params)
        least, largest = (float(extreme) for extreme in sizes.aminmax())
        if least == largest > 0:
            found.append(largest * value)
        else:
            moved = sizes.mul_(gradient)
            found.append(_along(gradient, moved, curvature @ moved))
    return BatchSharpness(value, noise, 0.5 * found[0], found[1])


def curvature_elsewhere(
    curvature: Curvature, other: Curvature, thresholds: Sequence[ParameterThreshold] | None = None
) -> float:
    """The share of a batch's curvature along its own step that another batch has too: v^T H' v / v^T H v, v = T g.

    H and g are of `curvature`, H' is of `other`; T is the `total` of `ParameterThreshold`. 1 minus the mean over other
    batches is the `noise` of `BatchSharpness`. It costs one product of each Hessian, and is 1 if v^T H v is not
    positive.

    >>> import torch
    >>> theta = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> one, other = (hessian(lambda k=k: theta[0] ** 2 + k * theta[1] ** 2, [theta]) for k in (0.0, 3.0))
    >>> curvature_elsewhere(one, other), round(curvature_elsewhere(other, one), 3)
    (1.0, 0.036)
    """
    moved = curvature.gradient
    if thresholds is not None:
        moved = spread([each.total for each in thresholds], curvature.params).mul_(moved)
    own = float(moved @ (curvature @ moved))
    return float(moved @ (other @ moved)) / own if own > 0.0 else 1.0


def _along(gradient: Tensor, moved: Tensor, image: Tensor) -> float:
    length = float(gradient @ moved)
    return float(moved @ image) / length if length > 0.0 else 0.0
