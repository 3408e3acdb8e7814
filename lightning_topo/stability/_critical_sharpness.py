"""How close a step came to no longer lowering the loss, by forward passes alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class CriticalSharpness:
    """1 / s, with s the smallest multiple of a step at which the loss no longer falls below its value before the step.

    - `value` is 1 / s: below 1 a somewhat longer step would still end below the loss before it, and 1 is the edge of
      stability. It is 0 if no multiple raises the loss, and infinity if none lowers it.
    - `bracket` is the interval in which s was found, with 0 or infinity for an open side.
    - `converged` says whether the bracket is as narrow as the tolerance.
    - `noise` is half the difference between the values on two halves of the data; None if it was not measured.
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
    """1 / s, with s the smallest multiple of the step at which the loss no longer falls below its present value.

    On a quadratic it is Delta^T H Delta / (-2 g^T Delta), the `directional_ratio`. It is also right where the loss is
    not quadratic, and for any optimizer, as it needs no gradient.

    The search goes outward from `start`, doubling the stride, until s lies in between. Then the bracket is narrowed
    until its upper end is at most `1 + tolerance` times its lower end, which leaves a relative error of at most
    tolerance / 2. From a nearby start that takes about five evaluations besides `loss_at(0)`. A loss that is not finite
    counts as higher than any other.

    Args:
        loss_at: The loss at theta + s Delta, Delta the step actually taken, as a function of s.
        start: The multiple to try first; `1 / value` of an earlier result makes a warm start.
        tolerance: The relative width of the bracket at which the search stops.
        max_forwards: The most evaluations of `loss_at`.
        halves: Two functions as `loss_at`, each on one half of the data, for `noise`; each is called three times.

    Raises `FloatingPointError` if the loss before the step is not finite, and `ValueError` unless start and tolerance
    are positive and finite and max_forwards is at least 3.

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
    low, high = 0.0, math.inf
    at, width = start, 1.0 + tolerance
    while counted.n < max_forwards and not high <= (1.0 + tolerance) * low:
        if counted(at) < before:
            low = at
        else:
            high = at
        if high == math.inf or low == 0.0:
            # Both sides of a good start are looked at closely first, then ever further away.
            at = low * width if high == math.inf else high / width
            width = width**2 if width < 16.0 else width
            if not _SMALLEST < at < _LARGEST:
                break
        else:
            at = math.sqrt(low * high)
    spread = None if halves is None else _spread(halves, _value(low, high), counted)
    return CriticalSharpness(
        _value(low, high), counted.n, low > 0.0 and high <= (1.0 + tolerance) * low, (low, high), spread
    )


_SMALLEST, _LARGEST = 1e-9, 1e9


def _value(low: float, high: float) -> float:
    if high == math.inf:
        return 0.0
    return math.inf if low == 0.0 else 1.0 / math.sqrt(low * high)


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

    def __call__(self, multiple: float) -> float:
        return self.of(self.loss_at, multiple)

    def of(self, loss_at: Callable[[float], Tensor | float], multiple: float) -> float:
        self.n += 1
        loss = float(loss_at(multiple))
        return loss if math.isfinite(loss) else math.inf
