"""How close a step came to no longer lowering the loss, by forward passes alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CriticalSharpness:
    """How far a step is from the length at which it no longer lowers the loss: the result of `critical_sharpness`.

    s is the multiple of the step at which the loss is back at its value before the step.

    Attributes:
        value: 1 / s. 1 is the edge of stability; below 1 a somewhat longer step would still lower the loss. It is 0 if
            the loss is lower at every multiple tried, inf if it is at none, and nan if it is the same at all of them
            but for rounding.
        n_forwards: Number of evaluations of the loss, those on halves of the data included.
        converged: Whether the bracket is as narrow as the tolerance.
        bracket: The interval that holds s, with 0 or inf for an open side.
        noise: Half the difference between `value` on one half of the data and on the other; None if it was not
            measured, inf if there is no value on a half.
    """

    value: float
    n_forwards: int
    converged: bool
    bracket: tuple[float, float]
    noise: float | None = None


def critical_sharpness(
    loss_at: Callable[[float], Tensor | float],
    *,
    start: float = 1.0,
    tolerance: float = 0.1,
    max_forwards: int = 12,
    halves: tuple[Callable[[float], Tensor | float], Callable[[float], Tensor | float]] | None = None,
) -> CriticalSharpness:
    """Compute 1 / s, with s the multiple of a step at which the loss is back at its value before the step.

    On a quadratic loss it equals `directional_ratio`, Delta^T H Delta / (-2 g^T Delta) with g the gradient before the
    step Delta and H the Hessian. It needs no gradient: it is right for any loss and any optimizer.

    The search tries `start`, then ever shorter or longer multiples, until one multiple lowers the loss and a longer one
    does not. s lies between the two. Then the search narrows this bracket until its upper end is at most 1 + tolerance
    times its lower end; the value then has a relative error of at most tolerance / 2. From a nearby start that takes
    about five evaluations besides `loss_at(0)`. A loss that is not finite counts as higher than any other. One that
    differs from `loss_at(0)` by rounding alone tells nothing: unless half the multiple lowers the loss visibly, the
    search goes on to longer ones. If the loss returns to its starting value at several multiples, s is one of them.

    Args:
        loss_at: Returns the loss at theta + s Delta for a multiple s, theta being the parameters before the step.
        start: The multiple to try first; `1 / value` of an earlier result is a good start.
        tolerance: The relative width of the bracket at which the search stops.
        max_forwards: The most evaluations of `loss_at`.
        halves: Two functions like `loss_at`, each on one half of the data, to measure `noise` by three more evaluations
            of each.

    Raises:
        FloatingPointError: The loss before the step is not finite.
        ValueError: `start` or `tolerance` is not positive and finite, or `max_forwards` is below 3.

    Source: arXiv:2601.16979 (critical sharpness).

    >>> found = critical_sharpness(lambda s: (1.0 - 0.5 * s) ** 2, tolerance=0.01, max_forwards=30)
    >>> abs(found.value - 0.25) < 0.01, found.converged
    (True, True)
    """
    if not (0.0 < start < math.inf and 0.0 < tolerance < math.inf and max_forwards >= 3):
        raise ValueError(
            f"expected start > 0, tolerance > 0 and max_forwards >= 3, got {start}, {tolerance} and {max_forwards}"
        )
    counted = _Counted(loss_at)
    before = counted(0.0)
    if not math.isfinite(before):
        raise FloatingPointError(f"expected a finite loss before the step, got {before}")
    low, high, unseen = 0.0, math.inf, 0.0
    at, width = start, 1.0 + tolerance
    while counted.n < max_forwards and not high <= (1.0 + tolerance) * max(low, unseen):
        change, visible = counted(at) - before, _ROUNDING * counted.precision * abs(before)
        if low == 0.0 and abs(change) <= visible:
            # At s itself the loss is back, and lowest at half of s; a multiple too short to see is so at its half too.
            if counted.n < max_forwards and counted(0.5 * at) - before < -visible:
                low, high = 0.5 * at, at
            else:
                unseen, width = at, _WIDEST
        elif change < 0.0:
            low = at
        else:
            high = at
        if high == math.inf or low == unseen == 0.0:
            # Both sides of a good start are looked at closely first, then ever further away.
            at = at * width if high == math.inf else high / width
            width = width**2 if width < _WIDEST else width
            if not _SMALLEST < at < _LARGEST:
                break
        else:
            at = math.sqrt(max(low, unseen) * high)
    spread = None if halves is None else _spread(halves, _value(low, high), counted)
    return CriticalSharpness(
        _value(low, high), counted.n, low > 0.0 and high <= (1.0 + tolerance) * low, (low, high), spread
    )


_SMALLEST, _LARGEST = 1e-9, 1e9
_WIDEST = 16.0
_ROUNDING = 8.0
"""So many units in the last place two evaluations of a loss may differ by rounding."""


def _value(low: float, high: float) -> float:
    if low == 0.0:
        return math.nan if high == math.inf else math.inf
    return 0.0 if high == math.inf else 1.0 / math.sqrt(low * high)


def _spread(
    halves: tuple[Callable[[float], Tensor | float], Callable[[float], Tensor | float]],
    value: float,
    counted: "_Counted",
) -> float | None:
    """From the parabola through 0, s / 2 and s on each half: its second root is where that half is no lower."""
    if not 0.0 < value < math.inf:
        return None
    found = []
    for half in halves:
        at_start, middle, end = (counted.of(half, s) for s in (0.0, 0.5 / value, 1.0 / value))
        slope, bend = 4.0 * middle - 3.0 * at_start - end, 2.0 * (end + at_start - 2.0 * middle)
        found.append(value * max(-bend / slope, 0.0) if slope < 0.0 else math.inf)
    return 0.5 * abs(found[0] - found[1]) if all(math.isfinite(each) for each in found) else math.inf


@dataclass(slots=True)
class _Counted:
    """A loss that counts how often it was evaluated; what is not finite is infinite."""

    loss_at: Callable[[float], Tensor | float]
    n: int = 0
    precision: float = torch.finfo(torch.float64).eps

    def __call__(self, multiple: float) -> float:
        return self.of(self.loss_at, multiple)

    def of(self, loss_at: Callable[[float], Tensor | float], multiple: float) -> float:
        self.n += 1
        found = loss_at(multiple)
        if isinstance(found, Tensor) and found.is_floating_point():
            self.precision = torch.finfo(found.dtype).eps
        loss = float(found)
        return loss if math.isfinite(loss) else math.inf
