"""Read from a record's coverage lines which steps are exact, bounded, spanned or open."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

from lightning_topo.measurement import GLOBAL, Measurement, OpenCause, StepState
from lightning_topo.phases import Phase
from lightning_topo.phases._coverage import follow_coverage

_CAUSES = frozenset(map(int, OpenCause))


@dataclass(frozen=True, slots=True)
class Stretch:
    """The steps `first` to `last` of one group, all in one state; `bound` is an upper bound of r over bounded ones.

    `cause` says why r is not known, as far as a line of one group does. Step k leads from the weights after k - 1 steps
    to those after k.
    """

    first: int
    last: int
    state: StepState
    bound: float | None = None
    cause: OpenCause | None = None


def stretches(measurements: Iterable[Measurement]) -> dict[str, tuple[Stretch, ...]]:
    """The coverage lines of a record, by group and in order of steps; empty where there are none.

    A line that certifies nothing (a bound that is not below 1, an unknown state) is open, as it is for phases.

    >>> line = {"from": 0.0, "state": float(StepState.BOUNDED), "bound": 0.3}
    >>> stretches([Measurement(9, 0, "coverage", "net.0", line)])
    {'net.0': (Stretch(first=1, last=9, state=<StepState.BOUNDED: 2>, bound=0.3, cause=None),)}
    """
    found: dict[str, list[Stretch]] = {}
    for m in measurements:
        if m.probe == "coverage" and m.group != GLOBAL and "state" in m.values:
            stretch = _stretch(m)
            if stretch.first <= stretch.last:
                found.setdefault(m.group, []).append(stretch)
    return {group: tuple(sorted(lines, key=lambda s: (s.first, s.last))) for group, lines in found.items()}


def unrecorded(covered: Iterable[Stretch], since: int | None = None) -> tuple[Stretch, ...]:
    """The steps between covered ones, and after step `since`, that no line covers; their state is open.

    >>> unrecorded([Stretch(1, 4, StepState.EXACT), Stretch(8, 9, StepState.EXACT)])
    (Stretch(first=5, last=7, state=<StepState.OPEN: 0>, bound=None, cause=None),)
    """
    gaps = []
    last = since
    for stretch in sorted(covered, key=lambda s: s.first):
        if last is not None and stretch.first > last + 1:
            gaps.append(Stretch(last + 1, stretch.first - 1, StepState.OPEN))
        last = stretch.last if last is None else max(last, stretch.last)
    return tuple(gaps)


def weakest(covered: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """Each step in the weakest of its states, as stretches without overlap; steps that belong to none are left out.

    >>> one, other = Stretch(1, 9, StepState.EXACT), Stretch(4, 5, StepState.OPEN)
    >>> [(s.first, s.last, s.state.name) for s in weakest([one, other])]
    [(1, 3, 'EXACT'), (4, 5, 'OPEN'), (6, 9, 'EXACT')]
    """
    changes: dict[int, list[int]] = {}
    for stretch in covered:
        changes.setdefault(stretch.first, [0] * len(StepState))[stretch.state] += 1
        changes.setdefault(stretch.last + 1, [0] * len(StepState))[stretch.state] -= 1
    pieces: list[Stretch] = []
    active = [0] * len(StepState)
    for begin, end in pairwise(sorted(changes)):
        active = [n + change for n, change in zip(active, changes[begin], strict=True)]
        state = next((state for state in StepState if active[state]), None)
        if state is None:
            continue
        if pieces and pieces[-1].state is state and pieces[-1].last == begin - 1:
            pieces[-1] = replace(pieces[-1], last=end - 1)
        else:
            pieces.append(Stretch(begin, end - 1, state))
    return tuple(pieces)


def of_network(by_group: Mapping[str, Sequence[Stretch]], since: int | None = None) -> tuple[Stretch, ...]:
    """The states of the whole network's steps: each step counts as its weakest group, an unrecorded one as open.

    Where a bound of 0 says that a group stood still, its r is as exact as if it had been measured.

    >>> still = Stretch(1, 9, StepState.BOUNDED, 0.0)
    >>> [(s.first, s.last, s.state.name) for s in of_network({"a": [still], "b": [Stretch(1, 2, StepState.EXACT)]})]
    [(1, 9, 'EXACT')]
    """
    covered = [
        replace(stretch, state=StepState.EXACT) if stretch.bound == 0.0 else stretch
        for stretch in chain.from_iterable(by_group.values())
    ]
    return weakest([*covered, *unrecorded(covered, since)]) if covered else ()


def uncovered(
    phases: Mapping[str, Sequence[tuple[int, Phase]]], covered: Mapping[str, Sequence[Stretch]]
) -> dict[str, tuple[tuple[int, Phase], ...]]:
    """The phases with `UNKNOWN` for `PRESERVED` over every step that is open or spanned, and only there.

    A coverage line is recorded at its last step: a replay alone would know only then of an open step, or that what
    followed one was certified.
    """
    if not covered:
        return {group: tuple(found) for group, found in phases.items()}
    return {
        group: _unpreserved(found, of_network(covered) if group == GLOBAL else covered.get(group, ()))
        for group, found in phases.items()
    }


def broken_over_open(series: Sequence[tuple[int, float]], covered: Iterable[Stretch]) -> list[tuple[int, float]]:
    """A series with NaN where an uncertified stretch begins, unless that step was measured; empty stays empty.

    >>> broken_over_open([(1, 0.1), (9, 0.2)], [Stretch(4, 8, StepState.OPEN)])
    [(1, 0.1), (4, nan), (9, 0.2)]
    """
    measured = dict(series)
    gaps = {s.first: float("nan") for s in covered if not s.state.certified and s.first not in measured}
    return sorted({**gaps, **measured}.items()) if measured else []


def _unpreserved(changes: Sequence[tuple[int, Phase]], covered: Iterable[Stretch]) -> tuple[tuple[int, Phase], ...]:
    known = weakest(covered)
    doubtful = [s for s in known if not s.state.certified]
    changes = _certified_at_once(changes, [s for s in known if s.state.certified])
    edges = sorted({step for step, _ in changes} | {edge for s in doubtful for edge in (s.first, s.last + 1)})
    shown: list[tuple[int, Phase]] = []
    at = dict(changes)
    phase = None
    ahead = iter(doubtful)
    current = next(ahead, None)
    for step in edges:
        phase = at.get(step, phase)
        while current is not None and current.last < step:
            current = next(ahead, None)
        is_doubtful = current is not None and current.first <= step
        seen = Phase.UNKNOWN if phase is Phase.PRESERVED and is_doubtful else phase
        if seen is not None and (not shown or shown[-1][1] is not seen):
            shown.append((step, seen))
    return tuple(shown)


def _certified_at_once(
    changes: Sequence[tuple[int, Phase]], certified: Sequence[Stretch]
) -> Sequence[tuple[int, Phase]]:
    """Where no phase was known until a line of certified steps came, let it be preserved from their first one on."""
    firsts = [s.first for s in certified]
    moved = list(changes)
    before = (0, Phase.UNKNOWN)
    for k, ((since, phase), (step, then)) in enumerate(pairwise([before, *changes])):
        if phase is Phase.UNKNOWN and then is Phase.PRESERVED:
            i = bisect_right(firsts, step) - 1
            if i >= 0 and certified[i].last >= step and firsts[i] > since:
                moved[k] = (firsts[i], then)
    return moved


def _stretch(m: Measurement) -> Stretch:
    begins = m.values.get("from", float("nan"))
    bound = m.values.get("bound")
    state = follow_coverage(None, begins, m.step, m.values["state"], bound).state
    if state is StepState.BOUNDED and bound is None:
        bound = 1.0  # that is what a bounded step is
    first = int(begins) + 1 if 0 <= begins <= m.step else m.step
    cause = m.values.get("cause")
    return Stretch(
        first,
        m.step,
        state,
        bound if state is StepState.BOUNDED else None,
        OpenCause(int(cause)) if cause in _CAUSES and not state.certified else None,
    )
