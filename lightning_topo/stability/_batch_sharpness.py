"""The curvature that minibatch training settles at: that of a step's own batch, along the batch's own gradient."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_topo.stability._hessian import Curvature, hessian
from lightning_topo.stability._optimizer_thresholds import ParameterThreshold
from lightning_topo.stability._parameter_thresholds import is_one, range_of_ratios, spread


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
    gradient. If T varies between entries, it takes one more product, and S another one unless T is S times one
    number. All are 0 if the gradient is 0.

    Raises `ValueError` unless 0 <= noise <= 1.

    Derivation: docs/edge.md. Source: Andreyev and Beneventano, arXiv:2412.20553; arXiv:2604.14108 (momentum).
    """
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"expected a share of noise from 0 to 1, got {noise}")
    directions = batch_directions(curvature, thresholds)
    return directions.sharpness(curvature.along(directions.vectors), noise=noise)


@dataclass(frozen=True, slots=True, eq=False)
class BatchDirections:
    """The vectors along which the curvature of one batch is wanted: its gradient g, T g and S g.

    `vectors` holds none that is a multiple of another: g, T g and S g are these multiples of the vectors at these
    places. Without thresholds there is g alone.
    """

    vectors: tuple[Tensor, ...]
    multiples: tuple[tuple[int, float], ...]

    @property
    def step(self) -> Tensor:
        """T g, or a multiple of it; g without thresholds."""
        return self.vectors[self._of_step]

    @property
    def _of_step(self) -> int:
        return self.multiples[min(1, len(self.multiples) - 1)][0]

    def sharpness(self, along: Sequence[float], *, noise: float) -> BatchSharpness:
        """The batch sharpness, given v^T H v of each of the vectors."""
        g = self.vectors[0]
        found = []
        for place, multiple in self.multiples:
            length = float(g @ self.vectors[place])
            found.append(multiple * along[place] / length if length > 0.0 else 0.0)
        value, *scaled = found
        return BatchSharpness(value, noise, 0.5 * scaled[0], scaled[1]) if scaled else BatchSharpness(value, noise)

    def along_step(self, along: Sequence[float]) -> float:
        """v^T H v of `step`, given that of each of the vectors."""
        return along[self._of_step]


def batch_directions(curvature: Curvature, thresholds: Sequence[ParameterThreshold] | None = None) -> BatchDirections:
    """The directions that `curvature_batch_sharpness` looks along."""
    gradient = curvature.gradient
    vectors, multiples = [gradient], [(0, 1.0)]
    if thresholds is None:
        return BatchDirections(tuple(vectors), tuple(multiples))
    totals, stabilities = [each.total for each in thresholds], [each.stability for each in thresholds]
    least, largest = range_of_ratios(totals, stabilities)
    for sizes in (totals, stabilities):
        if sizes is stabilities and largest > 0.0 and is_one(least, largest):
            place, multiple = multiples[-1]
            multiples.append((place, multiple / largest))
            continue
        scale = spread(sizes, curvature.params)
        low, high = (float(extreme) for extreme in scale.aminmax())
        if low == high > 0.0:
            multiples.append((0, high))
        else:
            vectors.append(scale.mul_(gradient))
            multiples.append((len(vectors) - 1, 1.0))
    return BatchDirections(tuple(vectors), tuple(multiples))


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
    step = batch_directions(curvature, thresholds).step
    [own], [elsewhere] = curvature.along([step]), other.along([step])
    return share(own, elsewhere)


def share(own: float, elsewhere: float) -> float:
    """How much of a curvature is met elsewhere: 1 if there is none."""
    return elsewhere / own if own > 0.0 else 1.0
