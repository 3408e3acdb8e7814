"""Fit a long run onto a screen: fewer columns than steps, with the extremes kept."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Series = Sequence[tuple[int, float]]
"""(step, value) in the order of steps."""


@dataclass(frozen=True, slots=True)
class StepTable:
    """Columns of numbers over common steps; None where nothing was measured, or where it was NaN.

    The value at `steps[i]` stands for all measured steps from there up to `steps[i + 1]`: at most `merged` of them.
    """

    steps: tuple[int, ...]
    columns: Mapping[str, tuple[float | None, ...]]
    merged: int = 1

    def __post_init__(self) -> None:
        if any(len(column) != len(self.steps) for column in self.columns.values()):
            raise ValueError(f"expected columns of {len(self.steps)} values, one a step")


def bin_starts(steps: Sequence[int], max_bins: int, unit: int = 1) -> tuple[int, ...]:
    """Where each column begins: at every step while there are few, else in equal widths, empty ones left out.

    Where a value may stand for `unit` steps, from a multiple of it on, columns are of whole units.

    >>> bin_starts([3, 4, 9], max_bins=5), bin_starts([0, 1, 2, 3, 8, 9], max_bins=5)
    ((3, 4, 9), (0, 2, 8))
    """
    if max_bins < 1:
        raise ValueError(f"expected max_bins >= 1, got {max_bins}")
    distinct = sorted(set(steps))
    if len(distinct) <= max_bins and unit == 1:
        return tuple(distinct)
    first = distinct[0] // unit * unit
    width = math.ceil((distinct[-1] - first + 1) / max_bins / unit) * unit
    return tuple(sorted({first + (step - first) // width * width for step in distinct}))


def step_table(
    series: Mapping[str, Series], keep: Callable[[str], Callable[[list[float]], float]], max_bins: int, unit: int = 1
) -> StepTable:
    """Lay several series on common steps; of the values that share a column, `keep(name)` chooses one.

    Each value may stand for so many as `unit` steps, see `bin_starts`.

    >>> step_table({"r": [(0, 0.1), (1, 0.3), (2, 0.2), (3, 0.1)]}, lambda name: max, max_bins=2)
    StepTable(steps=(0, 2), columns={'r': (0.3, 0.2)}, merged=2)
    """
    measured = sorted({step for points in series.values() for step, _ in points})
    starts = bin_starts(measured, max_bins, unit)
    columns = {}
    for name, points in series.items():
        bins: list[list[float]] = [[] for _ in starts]
        for step, value in points:
            if not math.isnan(value):
                bins[bisect_right(starts, step) - 1].append(value)
        columns[name] = tuple(keep(name)(values) if values else None for values in bins)
    counts = [0] * len(starts)
    for step in measured:
        counts[bisect_right(starts, step) - 1] += 1
    return StepTable(starts, columns, max(counts, default=1) if unit == 1 else _widest(starts, measured))


def _widest(starts: Sequence[int], measured: Sequence[int]) -> int:
    """The number of steps in the widest column: of those that share a value not all may be known any more."""
    return max((end - begin for begin, end in pairwise([*starts, measured[-1] + 1])), default=1)


def held(table: StepTable, until_step: int) -> StepTable:
    """Up to `until_step` each value stands until the next of its own column: of a thinned record a line is many.

    >>> held(StepTable((1, 2, 3, 4), {"a": (0.5, None, None, None), "b": (None, 0.1, 0.2, None)}), until_step=3).columns
    {'a': (0.5, 0.5, 0.5, None), 'b': (None, 0.1, 0.2, None)}
    """
    columns: dict[str, tuple[float | None, ...]] = {}
    for name, values in table.columns.items():
        last: float | None = None
        filled = []
        for step, value in zip(table.steps, values, strict=True):
            last = value if value is not None else last if step <= until_step else None
            filled.append(last)
        columns[name] = tuple(filled)
    return StepTable(table.steps, columns, table.merged)


def envelope(name: str, points: Series, max_points: int) -> StepTable:
    """One series as a line of at most `max_points`, the least and the greatest value of every column kept.

    NaN breaks the line where it stood.

    >>> envelope("loss", [(0, 3.0), (1, 9.0), (2, 1.0), (3, 2.0)], max_points=3)
    StepTable(steps=(1, 2), columns={'loss': (9.0, 1.0)}, merged=4)
    """
    if len(points) <= max_points:
        values = tuple(None if math.isnan(value) else value for _, value in points)
        return StepTable(tuple(step for step, _ in points), {name: values})
    starts = bin_starts([step for step, _ in points], max(1, max_points // 2))
    bins: list[list[tuple[int, float]]] = [[] for _ in starts]
    for step, value in points:
        bins[bisect_right(starts, step) - 1].append((step, value))
    kept: list[tuple[int, float | None]] = []
    for column in bins:
        numbers = [point for point in column if not math.isnan(point[1])]
        if numbers:
            kept += sorted({min(numbers, key=lambda p: p[1]), max(numbers, key=lambda p: p[1])})
        else:
            kept.append((column[0][0], None))
    return StepTable(tuple(step for step, _ in kept), {name: tuple(value for _, value in kept)}, max(map(len, bins)))
