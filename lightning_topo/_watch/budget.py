"""The share of the time that the monitor takes, and the time of a training step without it."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from lightning_topo._clock import Clock

EXACT_SHARE = 0.05
"""Measurements for which only a bound asks may take this share of the time ..."""
EXACT_STEPS = 10.0
"""... and in the beginning the time of this many steps."""

_WINDOW = 64


class Budget:
    """Counts the seconds spent in the monitor, and those of the steps between."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._spent = 0.0
        self._depth = 0
        self._mark: tuple[float, float] | None = None
        # A median over the last steps: the first ones warm up, and a validation in between is no step.
        self._steps: deque[float] = deque(maxlen=_WINDOW)

    def seconds(self) -> float:
        """Seconds since the fit began."""
        return self._clock.seconds()

    def spent(self) -> float:
        """Seconds of them that the monitor has taken."""
        return self._spent

    def share(self) -> float:
        """The fraction of the time that the monitor has taken."""
        return self._spent / max(self.seconds(), 1e-9)

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a training step without the monitor; None before the third step."""
        return median(self._steps) if len(self._steps) > 1 else None

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Charge the enclosed time to the monitor; nested, only once."""
        began, self._depth = self.seconds(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._spent += self.seconds() - began

    def begin_step(self) -> None:
        """A batch begins."""
        self._mark = (self.seconds(), self._spent)

    def end_step(self) -> None:
        """The batch is over; the monitor's own time in it does not count."""
        if self._mark is not None:
            then, spent = self._mark
            self._steps.append(max(self.seconds() - then - (self._spent - spent), 0.0))
            self._mark = None


@dataclass(slots=True)
class Allowance:
    """What measurements may take for which only the bounds of steps ask.

    Holds the time that they have `spent`. Unless it is `limited`, more is always allowed.

    >>> budget = Budget()
    >>> Allowance(limited=True, spent=1e9).allows(budget), Allowance(limited=False, spent=1e9).allows(budget, 1e9)
    (True, True)
    """

    limited: bool
    spent: float = 0.0

    def allows(self, budget: Budget, ahead: float = 0.0) -> bool:
        """Whether another measurement is allowed, which takes the time `ahead` as far as that is known.

        Before any step has been timed it is.
        """
        if not self.limited or budget.step_seconds is None:
            return True
        return self.spent + ahead <= EXACT_SHARE * budget.seconds() + EXACT_STEPS * budget.step_seconds
