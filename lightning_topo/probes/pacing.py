"""Keeping the monitor below its share of the wall time, by widening the adaptive periods."""

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from lightning_topo.probes.period import Period

FULL_STEPS = 200
"""So many steps, from the first, are always measured fully: that is where r peaks."""

REPACE_STEPS = 1000
"""Periods change at epoch boundaries and at multiples of this many steps."""


def widened(loads: Mapping[str, float], budget: float) -> dict[str, float]:
    """By what factor to stretch each probe's period so that the loads (cost per step) fit the budget together.

    Shares are equal; what a cheap probe leaves of its share goes to the others.

    >>> widened({"cheap": 1.0, "dear": 9.0}, budget=5.0)
    {'cheap': 1.0, 'dear': 2.25}
    """
    factors = dict.fromkeys(loads, 1.0)
    left = sorted(loads, key=lambda name: loads[name])
    while left:
        share = budget / len(left)
        if loads[left[0]] > share:
            return factors | {name: loads[name] / share for name in left}
        budget -= loads[left.pop(0)]
    return factors


@dataclass(slots=True)
class Pacer:
    """The periods in force, and the clocks that they follow.

    `max_overhead` is the fraction of wall time that the monitor may take; None leaves every period as it is.

    Raises `ValueError` unless `max_overhead` is between 0 and 1.
    """

    periods: Mapping[str, Period]
    max_overhead: float | None = 0.02
    every: dict[str, int] = field(init=False)
    _costs: dict[str, deque[float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_overhead is not None and not 0.0 < self.max_overhead < 1.0:
            raise ValueError(f"expected max_overhead between 0 and 1, or None, got {self.max_overhead}")
        self.every = {name: period.every for name, period in self.periods.items()}
        # A median over a few: the first call of a kernel or an engine is no measure of the next.
        self._costs = defaultdict(lambda: deque(maxlen=9))

    def due(self, name: str, unit: str, count: int) -> bool:
        """Whether the probe measures at the `count`-th step or epoch."""
        return self.periods[name].unit == unit and count % self.every[name] == 0

    def spent(self, name: str, seconds: float) -> None:
        """Note what one measurement took."""
        self._costs[name].append(seconds)

    def repace(self, step_seconds: float, steps_per_epoch: float) -> dict[str, int]:
        """Widen or narrow the adaptive periods to the budget; returns those that changed.

        `step_seconds` is what a training step takes without the monitor.
        """
        if self.max_overhead is None or step_seconds <= 0.0:
            return {}
        loads = {
            name: median(self._costs[name]) / (period.every * (steps_per_epoch if period.unit == "epoch" else 1.0))
            for name, period in self.periods.items()
            if self._costs[name]
        }
        # In time with the monitor: a fraction f of the whole is f / (1 - f) of the training alone.
        budget = step_seconds * self.max_overhead / (1.0 - self.max_overhead)
        adaptive = {name: load for name, load in loads.items() if self.periods[name].adaptive}
        fixed = sum(load for name, load in loads.items() if name not in adaptive)
        # Fixed periods may overdraw the budget; a tenth of it is always left for the adaptive ones.
        factors = widened(adaptive, max(budget - fixed, 0.1 * budget))
        new = {name: math.ceil(self.periods[name].every * factor) for name, factor in factors.items()}
        changed = {name: every for name, every in new.items() if every != self.every[name]}
        self.every |= changed
        return changed
