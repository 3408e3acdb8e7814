"""Batch sharpness: the curvature of the loss on one batch along the gradient of that batch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_topo.stability._hessian import Curvature, hessian
from lightning_topo.stability._optimizer_thresholds import ParameterThreshold
from lightning_topo.stability._parameter_thresholds import is_one, range_of_ratios


@dataclass(frozen=True, slots=True)
class BatchSharpness:
    """The curvature of one batch's loss along its own gradient, and its ratio to the optimizer's edge of stability.

    `curvature_batch_sharpness` gives the formulas. `small` and `large` are None if no thresholds were given.

    Attributes:
        value: g^T H g / g^T g, with g the gradient and H the Hessian of the batch's loss; 0 if g is 0.
        noise: The share of the curvature `value` that other batches do not have, from 0 to 1.
        small: The curvature, divided by that at which training settles if batches have no curvature in common.
        large: The curvature, divided by that at which training settles if batches have all curvature in common.
    """

    value: float
    noise: float
    small: float | None = None
    large: float | None = None

    @property
    def ratio(self) -> float | None:
        """The edge ratio of minibatch training, 1 at the edge of stability: `noise` `small` + (1 - `noise`) `large`.

        None if no thresholds were given.
        """
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
    """Compute the batch sharpness g^T H g / g^T g of the loss on one batch, g its gradient and H its Hessian.

    It takes one Hessian-vector product; with thresholds that differ between entries up to two more.

    Args:
        loss_fn: Returns the loss on the batch.
        params: The parameters to differentiate by.
        thresholds: The optimizer's threshold for each parameter that requires a gradient, as in
            `parameter_thresholds(...).parameters`. None leaves the ratios to the edge of stability out.
        noise: The share of the curvature that other batches do not have: 1 minus the mean of `curvature_elsewhere`
            over them. The default 1 is for batches that have nothing in common.

    Raises:
        ValueError: `noise` is not between 0 and 1, no parameter requires a gradient, or the loss is no scalar or
            depends on no parameter.
        FloatingPointError: The loss is not finite.
        NotTwiceDifferentiable: An operator in the loss has no second derivative.

    >>> import torch
    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> round(batch_sharpness(lambda: theta[0] ** 2 + 3 * theta[1] ** 2, [theta]).value, 4)
    5.8919
    """
    return curvature_batch_sharpness(hessian(loss_fn, params), thresholds, noise=noise)


def curvature_batch_sharpness(
    curvature: Curvature, thresholds: Sequence[ParameterThreshold] | None = None, *, noise: float = 1.0
) -> BatchSharpness:
    """Compute the batch sharpness from a Hessian H that is already built, and its gradient g:

        value = g^T H g / g^T g,    small = g^T T H T g / (2 g^T T g),    large = g^T S H S g / g^T S g.

    T and S are diagonal, with `total` and `stability` of `ParameterThreshold`. For SGD with momentum mu,
    small = value lr / (2 (1 - mu)) and large = value lr / (2 (1 + mu)). All are 0 if the gradient is 0. It takes one
    product, one more if T differs between entries, and one more for S unless T is S times one number.

    Args:
        curvature: The Hessian of the loss on one batch.
        thresholds: The optimizer's threshold for each of `curvature.params`; None leaves `small` and `large` None.
        noise: The share of the curvature that other batches do not have, kept in the result.

    Raises:
        ValueError: `noise` is not between 0 and 1.

    Derivation: docs/edge.md. Source: Andreyev and Beneventano, arXiv:2412.20553; arXiv:2604.14108 (momentum).
    """
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"expected a share of noise from 0 to 1, got {noise}")
    directions = batch_directions(curvature, thresholds)
    return directions.sharpness(curvature.along(directions.vectors), noise=noise)


@dataclass(frozen=True, slots=True, eq=False)
class BatchDirections:
    """The vectors along which the curvature of one batch is wanted: its gradient g, T g and S g.

    `vectors` holds none that is a multiple of another, and `lengths` the g^T v of each: g, T g and S g are these
    multiples of the vectors at these places. Without thresholds there is g alone.
    """

    vectors: tuple[Tensor, ...]
    lengths: tuple[float, ...]
    multiples: tuple[tuple[int, float], ...]

    @property
    def step(self) -> Tensor:
        """T g, or a multiple of it; g without thresholds."""
        return self.vectors[self._of_step]

    @property
    def _of_step(self) -> int:
        return self.multiples[:2][-1][0]

    def sharpness(self, along: Sequence[float], *, noise: float) -> BatchSharpness:
        """The batch sharpness, given v^T H v of each of the vectors."""
        per_length = [a / length if length > 0.0 else 0.0 for a, length in zip(along, self.lengths, strict=True)]
        value, *scaled = (multiple * per_length[place] for place, multiple in self.multiples)
        return BatchSharpness(value, noise, 0.5 * scaled[0], scaled[1]) if scaled else BatchSharpness(value, noise)

    def along_step(self, along: Sequence[float]) -> float:
        """v^T H v of `step`, given that of each of the vectors."""
        return along[self._of_step]


def batch_directions(curvature: Curvature, thresholds: Sequence[ParameterThreshold] | None = None) -> BatchDirections:
    """The directions that `curvature_batch_sharpness` looks along."""
    gradient, layout = curvature.gradient, curvature.layout
    vectors, multiples = [gradient], [(0, 1.0)]
    totals, stabilities = [each.total for each in thresholds or ()], [each.stability for each in thresholds or ()]
    least, largest = range_of_ratios(totals, stabilities, layout)
    for sizes in () if thresholds is None else (totals, stabilities):
        if sizes is stabilities and largest > 0.0 and is_one(least, largest):
            place, multiple = multiples[-1]
            multiples.append((place, multiple / largest))
            continue
        scale = layout.spread(sizes)
        low, high = layout.extremes(*(float(extreme) for extreme in scale.aminmax()))
        if low == high > 0.0:
            multiples.append((0, high))
        else:
            vectors.append(scale.mul_(gradient))
            multiples.append((len(vectors) - 1, 1.0))
    return BatchDirections(tuple(vectors), tuple(layout.dot(gradient, v) for v in vectors), tuple(multiples))


def curvature_elsewhere(
    curvature: Curvature, other: Curvature, thresholds: Sequence[ParameterThreshold] | None = None
) -> float:
    """Compare the curvature of two batches along the step of the first: v^T H' v / v^T H v, 1 if they curve alike.

    v = T g is the direction of the first batch's own step, g its gradient, H its Hessian, and H' the Hessian of the
    other batch's loss. T is diagonal, with `total` of `ParameterThreshold`. Without thresholds it is the identity. The
    `noise` of `BatchSharpness` is 1 minus the mean of this ratio over other batches. The result is 1 if v^T H v is not
    positive. It takes one product of each Hessian.

    Args:
        curvature: The Hessian of the first batch's loss.
        other: The Hessian of the other batch's loss, for the same parameters.
        thresholds: The optimizer's threshold for each of `curvature.params`.

    >>> import torch
    >>> theta = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> one, other = (hessian(lambda k=k: theta[0] ** 2 + k * theta[1] ** 2, [theta]) for k in (0.0, 3.0))
    >>> curvature_elsewhere(one, other), round(curvature_elsewhere(other, one), 3)
    (1.0, 0.036)
    """
    step = batch_directions(curvature, thresholds).step
    [own], [elsewhere] = curvature.along([step]), other.along([step])
    return share(own, elsewhere)


def share(own: float, elsewhere: float) -> float:
    """How much of a curvature is met elsewhere: 1 if there is none."""
    return elsewhere / own if own > 0.0 else 1.0
