"""What is known of every step of every group, as cells for the page."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from lightning_topo._figures.coverage import Stretch, unrecorded
from lightning_topo.measurement import StepState
from lightning_topo.outputs.page._thinning import Series, bin_starts


@dataclass(frozen=True, slots=True)
class CertificateTable:
    """Row g, cell i: what is known of group g in the steps `steps[i]` up to `steps[i + 1]`, the last up to `last`.

    `states` holds a code of `StepState`, None where no step of the group is recorded. `values` holds for an exact
    cell the largest r, for a bounded one an upper bound of r, else None.
    """

    steps: tuple[int, ...]
    last: int
    states: tuple[tuple[int | None, ...], ...]
    values: tuple[tuple[float | None, ...], ...]


def certificate_table(
    covered: Mapping[str, Sequence[Stretch]],
    ratios: Mapping[str, Series],
    groups: Sequence[str],
    max_cells: int,
    thinned_until: int = 0,
    unit: int = 1,
) -> CertificateTable | None:
    """Lay coverage and measured r on common cells, at most `max_cells` of them; None without coverage.

    A cell of many steps has the weakest of their states, except that it is exact where its largest value is a measured
    one, and that a measured r >= 1 is always shown. Up to `thinned_until` a measured r stands until the next; a value
    may stand for `unit` steps, see `bin_starts`.
    """
    every = list(chain.from_iterable(covered.values()))
    if not every:
        return None
    gaps = unrecorded(every)
    last = max(stretch.last for stretch in every)
    edges = {edge for s in every for edge in (s.first, s.last + 1) if edge <= last}
    first = min(edges)
    edges |= {step for group in groups for step, _ in ratios.get(group, ()) if first <= step <= last}
    starts = bin_starts(sorted(edges), max_cells, unit)
    rows = [
        _row(starts, (*covered.get(group, ()), *gaps), ratios.get(group, ()), last, thinned_until) for group in groups
    ]
    return CertificateTable(starts, last, tuple(states for states, _ in rows), tuple(values for _, values in rows))


def _row(
    starts: Sequence[int], covered: Sequence[Stretch], ratios: Series, last: int, thinned_until: int
) -> tuple[tuple[int | None, ...], tuple[float | None, ...]]:
    states: list[StepState | None] = [None] * len(starts)
    bounds = [-math.inf] * len(starts)
    for stretch in covered:
        for i in range(bisect_right(starts, stretch.first) - 1, bisect_right(starts, stretch.last)):
            known = states[i]
            states[i] = stretch.state if known is None else min(known, stretch.state)
            bounds[i] = max(bounds[i], -math.inf if stretch.bound is None else stretch.bound)
    exact = _largest(starts, ratios, last, thinned_until)
    cells = [_cell(*known) for known in zip(states, bounds, exact, strict=True)]
    return tuple(state for state, _ in cells), tuple(value for _, value in cells)


def _cell(state: StepState | None, bound: float, ratio: float) -> tuple[int | None, float | None]:
    if state is not None and ratio >= 1.0:
        return int(StepState.EXACT), ratio
    if state is None or not state.certified:
        return state if state is None else int(state), None
    if ratio >= bound:
        # The value that is known exactly is the largest of the cell.
        return (int(StepState.OPEN), None) if ratio == -math.inf else (int(StepState.EXACT), ratio)
    return int(StepState.BOUNDED), bound


def _largest(starts: Sequence[int], ratios: Series, last: int, thinned_until: int) -> list[float]:
    """The largest measured r of each cell, -inf without one."""
    found = [-math.inf] * len(starts)
    for step, ratio in ratios:
        if starts[0] <= step <= last and not math.isnan(ratio):
            i = bisect_right(starts, step) - 1
            found[i] = max(found[i], ratio)
    for i in range(1, len(starts)):
        if found[i] == -math.inf and starts[i] <= thinned_until:
            found[i] = found[i - 1]
    return found
