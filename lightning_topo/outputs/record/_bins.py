"""Measurements of one series in bounded memory: on columns of steps, with the extremes of each kept."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from lightning_topo._figures.coverage import Stretch, stretches
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import EdgeSource
from lightning_topo.quantities import Direction, direction

COVERAGE = "coverage"
_LEADING = ("loss", *(source.quantity for source in EdgeSource), "eta_lambda")
"""Of a network's line the first of these is drawn as a curve: its least and its greatest value are kept."""


class Bins:
    """One probe's measurements of one group, in the order of steps: the first, the newest, and between them bins.

    A bin holds what was measured in steps `k * width` up to `(k + 1) * width`, a power of two that grows as the run
    does: of a group one measurement, with the extremes of its values and the step of the largest critical ratio; of the
    network the two in which its curve is lowest and highest. Until there is need of it nothing is merged.
    """

    __slots__ = ("_binned", "_first", "_fresh", "last", "width")

    def __init__(self, first: Measurement) -> None:
        self._first: Measurement | None = None
        self.last: Measurement = first
        self._binned: list[Measurement] = []
        self._fresh: list[Measurement] = []
        self.width: int = 1

    def __len__(self) -> int:
        return len(self._binned) + len(self._fresh) + 2

    def add(self, measurement: Measurement) -> None:
        """Take in the next measurement, of a later step."""
        if self._first is None:
            self._first = self.last
        else:
            self._fresh.append(self.last)
        self.last = measurement

    def shrink(self, n_columns: int) -> None:
        """Merge on so few columns that at most `n_columns` are left."""
        if not self._binned and not self._fresh:
            return
        kept = sorted([*self._binned, *self._fresh], key=_step)
        first = _begin(kept[0])
        while kept[-1].step // self.width - first // self.width >= n_columns:
            self.width *= 2
        merge = _merged_curve if self._is_curve else _merged_group
        self._binned, self._fresh = list(merge(kept, self.width)), []

    @property
    def _is_curve(self) -> bool:
        return self.last.group == GLOBAL and self.last.probe != COVERAGE

    def __iter__(self) -> Iterator[Measurement]:
        if self._first is not None:
            yield self._first
        yield from self._binned
        yield from self._fresh
        yield self.last


def _step(m: Measurement) -> int:
    return m.step


def _begin(m: Measurement) -> int:
    """The first step that a measurement stands for: a line of coverage reaches back."""
    begins = m.values.get("from") if m.probe == COVERAGE else None
    return m.step if begins is None or not 0 <= begins < m.step else int(begins) + 1


def _merged_group(kept: list[Measurement], width: int) -> Iterator[Measurement]:
    """One measurement for each column."""
    waiting: Measurement | None = None
    for m in kept:
        if waiting is not None and waiting.step // width == m.step // width:
            waiting = join_coverage(waiting, m) if m.probe == COVERAGE else join(waiting, m)
            continue
        if waiting is not None:
            yield waiting
        waiting = m
    if waiting is not None:
        yield waiting


def _merged_curve(kept: list[Measurement], width: int) -> Iterator[Measurement]:
    """The lowest and the highest of each column, and the first that is not finite, as they were."""
    column: list[Measurement] = []
    for m in kept:
        if column and column[0].step // width != m.step // width:
            yield from _extremes(column)
            column = []
        column.append(m)
    if column:
        yield from _extremes(column)


def _extremes(column: list[Measurement]) -> list[Measurement]:
    numbers = [(lead(m), i) for i, m in enumerate(column)]
    finite = [found for found in numbers if math.isfinite(found[0])]
    chosen = {min(finite)[1], max(finite)[1]} if finite else set()
    if len(finite) < len(numbers):
        chosen.add(next(i for value, i in numbers if not math.isfinite(value)))
    return [column[i] for i in sorted(chosen)]


def lead(m: Measurement) -> float:
    """The value of a network's measurement that is drawn as a curve."""
    for name in _LEADING:
        if name in m.values:
            return m.values[name]
    return next(iter(m.values.values()), 0.0)


def join(first: Measurement, second: Measurement) -> Measurement:
    """Merge two measurements of a group: the least of each value that is bad when low, the greatest of all others.

    Its step is that of the greater critical ratio.

    >>> a = Measurement(1, 0, "distortion", "net.0", {"critical_ratio": 0.3, "contraction": 0.9})
    >>> join(a, Measurement(2, 0, "distortion", "net.0", {"critical_ratio": 0.2, "contraction": 0.8}))
    Measurement(step=1, epoch=0, probe='distortion', group='net.0', values={'critical_ratio': 0.3, 'contraction': 0.8})
    """
    values = dict(first.values)
    for name, value in second.values.items():
        known = values.get(name)
        # A comparison with NaN is false: what is known stays, and NaN only where nothing else is.
        if known is None or known != known or (value < known if _is_bad_when_low(name) else value > known):
            values[name] = value
    ratio = first.values.get("critical_ratio", -math.inf)
    at = first if ratio >= second.values.get("critical_ratio", -math.inf) else second
    return Measurement(at.step, at.epoch, at.probe, at.group, values)


def join_coverage(first: Measurement, second: Measurement) -> Measurement:
    """One line of coverage for two: their steps in the weaker state, with the larger bound; with a gap, open."""
    weaker, bounds = _weaker(first, second)
    values: dict[str, float] = {"from": float(_begin(first) - 1), "state": float(weaker)}
    if bounds:
        values["bound"] = max(bounds)
    cause = first.values.get("cause")
    if cause is not None and cause == second.values.get("cause"):
        values["cause"] = cause
    return replace(second, values=values)


def _weaker(first: Measurement, second: Measurement) -> tuple[int, list[float]]:
    pieces: list[Stretch] = [s for m in (first, second) for s in stretches([m]).get(m.group, ())]
    if len(pieces) < 2 or pieces[1].first > pieces[0].last + 1:
        return 0, []
    return min(int(s.state) for s in pieces), [s.bound for s in pieces if s.bound is not None]


@lru_cache(maxsize=1000)
def _is_bad_when_low(name: str) -> bool:
    return direction(name) is Direction.LOW_IS_BAD
