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
            the loss is lower at every multiple tried, and nan if it is the same at all of them but for rounding. If no
            multiple tried lowers the loss visibly, it is a lower bound: 1 / the shortest that raises it.
        n_forwards: Number of evaluations of the loss, those on halves of the data included.
        converged: Whether the loss is lower at one end of the bracket, no lower at the other, and the bracket is as
            narrow as the tolerance.
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
    rounding: float = 0.0,
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
        rounding: The share of the loss by which evaluations may differ by rounding alone, where that is more than the
            type of the loss shows: it may have been computed in a narrower one.
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
    # Of a loss near 0 what it is a sum of is rounded: of cross-entropy, logits.
    visible = max(counted.rounding, rounding) * (abs(before) + 0.125)
    low, high, unseen = 0.0, math.inf, 0.0
    at, width, has_risen = start, 1.0 + tolerance, False
    while counted.n < max_forwards and not high <= (1.0 + tolerance) * max(low, unseen):
        change = counted(at) - before
        has_risen = has_risen or change > visible
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
    is_narrow = low > 0.0 and high <= (1.0 + tolerance) * low
    if is_narrow and not has_risen and counted.n < max_forwards:
        has_risen = counted(2.0 * high) - before > visible  # it may only come near its value before the step
    spread = None if halves is None else _spread(halves, _value(low, high), counted)
    return CriticalSharpness(_value(low, high), counted.n, is_narrow and has_risen, (low, high), spread)


_SMALLEST, _LARGEST = 1e-9, 1e9
_WIDEST = 16.0


def _value(low: float, high: float) -> float:
    if high == math.inf:
        return math.nan if low == 0.0 else 0.0
    return 1.0 / (high if low == 0.0 else math.sqrt(low * high))


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
    """A loss that counts how often it was evaluated; what is not finite is infinite. `rounding` is its type's."""

    loss_at: Callable[[float], Tensor | float]
    n: int = 0
    rounding: float = 8.0 * torch.finfo(torch.float64).eps

    def __call__(self, multiple: float) -> float:
        return self.of(self.loss_at, multiple)

    def of(self, loss_at: Callable[[float], Tensor | float], multiple: float) -> float:
        self.n += 1
        found = loss_at(multiple)
        if isinstance(found, Tensor) and found.is_floating_point():
            self.rounding = rounding_of(found.dtype)
        loss = float(found)
        return loss if math.isfinite(loss) else math.inf


def rounding_of(dtype: torch.dtype) -> float:
    """The share of a loss by which evaluations in this type differ by rounding: eight units, two of half precision.

    >>> rounding_of(torch.bfloat16)
    0.015625
    """
    return torch.finfo(dtype).eps * (2.0 if dtype in (torch.float16, torch.bfloat16) else 8.0)


def rounding_within(*dtypes: torch.dtype) -> float:
    """The same for a loss that is computed in these types: the errors of many entries partly cancel."""
    return max((torch.finfo(dtype).eps / 8.0 for dtype in dtypes), default=0.0)
