"""When each probe measures: at a fixed period in steps or epochs, or at random times that the budget allows."""

import math
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from lightning_topo.probes import Period

Unit = Literal["step", "epoch"]

_POINTS = 128
"""Adaptive probes spread about this many measurements over the planned run."""
_EARLY_STEPS = 200
_EARLY_OVERHEAD = 0.03
"""In the first steps, which a short run consists of, exact distortions may take more ..."""
_EARLY_TIME = 32.0
"""... and so may a cheap probe, until it has taken the time of this many steps: a phase needs several
measurements."""
_ONCE = 0.02
"""A probe that takes no more than this part of a planned run measures once in it, paid for or not."""
_IDLE = 0.1
"""A probe that takes less than this part of a step has nothing to measure, and leaves its share to the others."""
_HASTE = 0.05
"""The share of the time for a probe that asked to measure again soon."""
_GUESS_STEPS = 12.0
_GUESS_SECONDS = 0.5
"""The assumed cost before the first measurement: this many training steps, and the import of an engine."""


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
    phase. A slot is as long as the probe's share of `max_overhead` asks for, and at least a part of the planned run;
    the first one begins when the training has lasted long enough to pay for it. With `max_overhead=None` adaptive
    periods are fixed ones. `hastened` are probes that may take more, as what they last found asks for a second look.
    `begins_anew` are those whose slots begin anew with the next plan: they were planned before the cost was known.
    `guesses` says of cheap probes what a measurement is taken to cost before the first, in training steps.

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
    hastened: set[str] = field(init=False, default_factory=set)
    begins_anew: set[str] = field(init=False, default_factory=set)
    _expected: dict[str, float] = field(init=False, default_factory=dict, repr=False)
    _like: dict[str, str] = field(init=False, default_factory=dict, repr=False)
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

    def is_due(self, name: str, unit: Unit, count: int) -> bool:
        """Whether the probe measures at the `count`-th step or epoch."""
        if self.is_adaptive(name):
            return unit == "step" and name in self.slots and count == self.slots[name].at
        return self.periods[name].unit == unit and count % self.periods[name].every == 0

    def steps_until(self, name: str, count: int) -> int | None:
        """How many steps after the `count`-th the probe measures next; None where that is not known yet.

        >>> Schedule({"sharpness": Period(25)}).steps_until("sharpness", 40)
        10
        """
        if self.is_adaptive(name):
            slot = self.slots.get(name)
            return slot.at - count if slot is not None and slot.at >= count else None
        return -count % self.periods[name].every if self.periods[name].unit == "step" else 0

    def steps_until_any(self, names: Iterable[str], count: int) -> int | None:
        """How many steps after the `count`-th the first of several probes measures; None where no time is known."""
        left = [self.steps_until(name, count) for name in names]
        return min((steps for steps in left if steps is not None), default=None)

    def expect(self, name: str, steps: float, *, like: str | None = None) -> None:
        """Set the expected cost of a probe's first measurement, in training steps; at least that of probe `like`."""
        self._expected[name] = steps
        if like is not None:
            self._like[name] = like

    def spent(self, name: str, seconds: float, *, is_setup: bool = False) -> None:
        """Note what one measurement took. What only prepares one, `is_setup`, says nothing of the cost of the next."""
        self._spent[name] += seconds
        if is_setup:
            return
        if not self._costs[name] and name not in self.dense:
            self.begins_anew.add(name)
        self._costs[name].append(seconds)

    def plan(self, step: int, step_seconds: float | None) -> dict[str, Slot]:
        """The slots of the adaptive probes after `step`: new ones where the old are over."""
        slots = {name: slot for name, slot in self.slots.items() if name not in self.begins_anew}
        self.begins_anew.clear()
        for name in self.periods:
            if not self.is_adaptive(name) or (name in slots and step < slots[name].at):
                continue
            if step_seconds is None and name not in slots:
                continue
            allowed = self._allowed(name, step, step_seconds)
            # What is not paid for yet is not measured: a short training must not pay for a long one.
            unpaid = 0 if name in self.dense or self._costs[name] else allowed
            stride = max(allowed, self._spread(name, step))
            if unpaid and self._fits_once(name, step_seconds):
                unpaid, stride = (min(steps, (self.planned_steps or 0) // 3) for steps in (unpaid, stride))
            start = step + unpaid if name not in slots else max(slots[name].end - 1, step)
            chance = random.Random(f"{self.seed}-{name}-{start}")
            slots[name] = Slot(start + 1, stride, start + 1 + chance.randrange(stride))
        return slots

    def _allowed(self, name: str, step: int, step_seconds: float | None) -> int:
        """In how many steps the probe may measure once."""
        assert self.max_overhead is not None
        seconds = max(step_seconds or 0.0, 1e-6)
        is_cheap = name in self.guesses and self._spent[name] < _EARLY_TIME * seconds
        is_early = is_cheap or (name in self.dense and step < _EARLY_STEPS)
        overhead = max(
            self.max_overhead + (_EARLY_OVERHEAD if is_early else 0.0), _HASTE if name in self.hastened else 0.0
        )
        idle = {other for other, costs in self._costs.items() if costs and median(costs) < _IDLE * seconds}
        n = sum(self.is_adaptive(other) for other in self.periods if other == name or other not in idle)
        cost = median(self._costs[name]) if self._costs[name] else self._guess(name, seconds)
        return max(math.ceil(cost / (overhead / n * seconds)), 1)

    def _fits_once(self, name: str, step_seconds: float | None) -> bool:
        """Whether one measurement is taken to cost little beside the planned run."""
        seconds = step_seconds or 0.0
        return self._guess(name, seconds) < _ONCE * seconds * (self.planned_steps or 0)

    def _guess(self, name: str, seconds: float) -> float:
        """The expected cost of the first measurement, for steps of this many seconds."""
        if name in self.guesses:
            return self.guesses[name] * seconds
        if name in self._expected:
            alike = self._costs.get(self._like.get(name, ""))
            return max(self._expected[name] * seconds, median(alike) if alike else 0.0)
        return _GUESS_SECONDS + _GUESS_STEPS * seconds

    def _spread(self, name: str, step: int) -> int:
        """In how many steps it should measure once, for its points to cover the planned run."""
        planned = step if self.planned_steps is None else self.planned_steps
        return 1 if name in self.dense else max(math.ceil(planned / _POINTS), 1)
