"""When each probe measures: at every so many steps or epochs, or at random times that the budget allows."""

import math
import random
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from lightning_topo.probes import Period

_POINTS = 128
"""Adaptive probes spread over the planned run: about so many measurements."""
_EARLY_STEPS = 200
_EARLY_OVERHEAD = 0.05
"""In the first steps, which a short run consists of, adaptive probes may take more ..."""
_EARLY_TIME = 32.0
"""... and one that is known to be cheap later, too, until it has taken as long as so many steps: a phase needs several
measurements."""
_IDLE = 0.1
"""A probe that takes less than this part of a step has nothing to measure, and leaves its share to the others."""
_GUESS = 12.0
"""What a measurement is taken to cost before the first, where nothing is known: so many training steps."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The stretch of steps in which an adaptive probe measures once, and the random step in it.

    >>> Slot(0, 10, 7).end
    10
    """

    start: int
    stride: int
    at: int

    @property
    def end(self) -> int:
        """Where the next slot begins."""
        return self.start + self.stride


@dataclass(slots=True)
class Schedule:
    """The times at which the probes of one training measure.

    A fixed period is obeyed exactly: `count % every == 0`. An adaptive one divides the run into slots and measures
    once in each, at a seeded random step, so that nothing in the training that repeats is always met in the same
    phase. A slot is as long as the probe's share of `max_overhead` asks for, and at least a part of the planned run.
    With `max_overhead=None` adaptive periods are fixed ones. `guesses` says what a measurement is taken to cost before
    the first, in training steps.

    Raises `ValueError` unless `max_overhead` is between 0 and 1.

    >>> schedule = Schedule({"sharpness": Period(25, adaptive=True)}, max_overhead=None)
    >>> [step for step in range(60) if schedule.is_due("sharpness", "step", step)]
    [0, 25, 50]
    """

    periods: Mapping[str, Period]
    max_overhead: float | None = 0.02
    seed: int = 0
    planned_steps: int | None = None
    dense: frozenset[str] = frozenset()
    guesses: Mapping[str, float] = field(default_factory=dict)
    slots: dict[str, Slot] = field(init=False, default_factory=dict)
    _costs: dict[str, deque[float]] = field(init=False, repr=False)
    _spent: dict[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_overhead is not None and not 0.0 < self.max_overhead < 1.0:
            raise ValueError(f"expected max_overhead between 0 and 1, or None, got {self.max_overhead}")
        # A median over a few: the first call of a kernel or an engine is no measure of the next.
        self._costs = defaultdict(lambda: deque(maxlen=9))
        self._spent = defaultdict(float)

    def is_adaptive(self, name: str) -> bool:
        """Whether the probe's times are chosen by the budget."""
        return self.max_overhead is not None and self.periods[name].adaptive

    def is_due(self, name: str, unit: Literal["step", "epoch"], count: int) -> bool:
        """Whether the probe measures at the `count`-th step or epoch."""
        if self.is_adaptive(name):
            return unit == "step" and name in self.slots and count == self.slots[name].at
        return self.periods[name].unit == unit and count % self.periods[name].every == 0

    def spent(self, name: str, seconds: float) -> None:
        """Note what one measurement took."""
        self._costs[name].append(seconds)
        self._spent[name] += seconds

    def plan(self, step: int, step_seconds: float | None) -> dict[str, Slot]:
        """The slots of the adaptive probes after `step`: new ones where the old are over."""
        slots = dict(self.slots)
        for name in self.periods:
            if not self.is_adaptive(name) or (name in slots and step < slots[name].at):
                continue
            if step_seconds is None and name not in slots:
                continue
            start = step if name not in slots else max(slots[name].end - 1, step)
            stride = self._stride(name, step, step_seconds)
            chance = random.Random(f"{self.seed}-{name}-{start}")
            slots[name] = Slot(start + 1, stride, start + 1 + chance.randrange(stride))
        return slots

    def _stride(self, name: str, step: int, step_seconds: float | None) -> int:
        assert self.max_overhead is not None
        seconds = max(step_seconds or 0.0, 1e-6)
        is_early = step < _EARLY_STEPS or (name in self.guesses and self._spent[name] < _EARLY_TIME * seconds)
        early = _EARLY_OVERHEAD if is_early else 0.0
        idle = {other for other, costs in self._costs.items() if costs and median(costs) < _IDLE * seconds}
        n = sum(self.is_adaptive(other) for other in self.periods if other == name or other not in idle)
        guess = self.guesses.get(name, _GUESS) * seconds
        cost = median(self._costs[name]) if self._costs[name] else guess
        allowed = math.ceil(cost / ((self.max_overhead + early) / n * seconds))
        planned = step if self.planned_steps is None else self.planned_steps
        spread = 1 if name in self.dense else math.ceil(planned / _POINTS)
        return max(allowed, spread, 1)
