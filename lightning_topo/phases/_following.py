"""Follow measurements of any number: the phases and events of a run, in time linear in its measurements.

No group's measurements touch what the detector remembers of another: each has a state of its own here, so that a step
costs the same whatever the number of groups. Only the network's state is shown whether any group has broken down.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import reduce
from typing import NamedTuple

from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases._event import TopologyEvent
from lightning_topo.phases._phase import Phase
from lightning_topo.phases._rules import PhaseRules
from lightning_topo.phases._state import DetectorState
from lightning_topo.quantities import quantity

Observe = Callable[[DetectorState, Measurement, PhaseRules], tuple[DetectorState, tuple[TopologyEvent, ...]]]
Change = tuple[int, Phase]
"""From this step on a phase holds."""

_MOST_CHANGES = 100_000
_FEWEST_CHANGES = 64
# Of the phases of one column the first of these is shown: what is not known is claimed by none.
_WORST_FIRST = (Phase.BREAKDOWN, Phase.EDGE_OF_STABILITY, Phase.UNPROTECTED, Phase.UNKNOWN, Phase.PRESERVED)


class _Shared(NamedTuple):
    """What the phase of every group depends on."""

    finite: bool = True
    at_edge: bool = False
    unprotected: bool = False
    measured: bool = False
    is_covered: bool = False

    @property
    def phase(self) -> Phase | None:
        """The phase of all groups that have not broken down; None where each has its own."""
        if not self.finite:
            return Phase.UNKNOWN
        if self.at_edge:
            return Phase.EDGE_OF_STABILITY
        return Phase.UNPROTECTED if self.unprotected else None


class PhaseFollower:
    """Follows a run one measurement at a time, and keeps its `phases` and `state` up to date.

    The time is linear in the number of measurements. At most about 100,000 changes of phase are kept, of all groups
    together: if there are more, `collapsed` reduces them to columns of several steps, each in its worst phase.

    - `observe`: The function `lightning_topo.phases.observe`, which updates a detector's state with one measurement.
    - `rules`: The thresholds of phases and events.
    """

    def __init__(self, observe: Observe, rules: PhaseRules = PhaseRules()) -> None:
        self._observe, self._rules = observe, rules
        self._states: dict[str, DetectorState] = {}
        self._changes: dict[str, list[Change]] = {GLOBAL: []}
        self._broken: set[str] = set()
        self._uncertified: set[str] = set()
        self._shared = _Shared()
        self._settled: dict[str, tuple[float | None, ...]] = {}
        self._plain: dict[tuple[str, ...], bool] = {}

    def take(self, measurement: Measurement) -> tuple[TopologyEvent, ...]:
        """Process the next measurement; return the events that it causes."""
        group = measurement.group
        before = self._states.get(group) or DetectorState()
        quiet = self._quiet_key(measurement)
        if quiet is not None and self._settled.get(group) == quiet:
            return ()  # it has changed nothing the last time, and so it does again
        if group == GLOBAL and self._broken:  # the loss is judged by it
            broken = next(iter(self._broken))
            shown = replace(before, breakdowns={broken: self._states[broken].breakdowns[broken]})
            state, events = self._observe(shown, measurement, self._rules)
            state = replace(state, breakdowns=before.breakdowns)
        else:
            state, events = self._observe(before, measurement, self._rules)
        self._states[group] = state
        if quiet is not None and not events and state == before:
            self._settled[group] = quiet
        elif measurement.probe != "coverage":  # whose state no other measurement of a settled group reads
            self._settled.pop(group, None)
        if group not in self._changes:
            self._changes[group] = []
        _keep_if(self._broken, group, group in state.breakdowns)
        run = state.coverage.get(group)
        _keep_if(self._uncertified, group, run is not None and not run.state.certified)
        shared = self._shared
        whole = self._states.get(GLOBAL) or _FRESH
        self._shared = _Shared(
            whole.finite,
            whole.edge.inside,
            whole.curvature.inside,
            shared.measured or state.measured,
            shared.is_covered or run is not None,
        )
        changed = self._changes if self._shared != shared else {group, GLOBAL}
        for each in changed:
            self._note(each, measurement.step)
        return events

    def _quiet_key(self, measurement: Measurement) -> tuple[float | None, ...] | None:
        """All that the detector reads of a step that no neuron was torn or merged in; None of any other measurement."""
        values = measurement.values
        if measurement.group == GLOBAL or not values.get("critical_ratio", _INF) < self._rules.critical_ratio:
            return None
        names = tuple(values)
        reads_no_more = self._plain.get(names)
        if reads_no_more is None:
            reads_no_more = measurement.probe != "coverage" and not any(map(_is_read, names))
            if len(self._plain) < _MOST_PLAIN:
                self._plain[names] = reads_no_more
        if not reads_no_more:
            return None
        return values.get("distinct_neurons"), values.get("n_neurons"), values.get("total_contraction") == 0.0

    @property
    def phases(self) -> dict[str, tuple[Change, ...]]:
        """The changes of phase so far: for each group (`""` for the network) pairs (first step, phase), in order."""
        return {group: tuple(series) for group, series in self._changes.items()}

    @property
    def state(self) -> DetectorState:
        """The detector's state after all measurements so far, of all groups together."""
        return reduce(_joined, self._states.values(), replace(_FRESH, measured=self._shared.measured))

    def _phase_of(self, group: str) -> Phase:
        if self._broken if group == GLOBAL else group in self._broken:
            return Phase.BREAKDOWN
        if (phase := self._shared.phase) is not None:
            return phase
        if not self._shared.is_covered:
            return Phase.PRESERVED if self._shared.measured else Phase.UNKNOWN
        if group == GLOBAL:
            return Phase.UNKNOWN if self._uncertified else Phase.PRESERVED
        run = self._states[group].coverage.get(group)
        return Phase.PRESERVED if run is not None and run.state.certified else Phase.UNKNOWN

    def _note(self, group: str, step: int) -> None:
        series, phase = self._changes[group], self._phase_of(group)
        # Before anything is known there is no change; later, a change to unknown is one.
        if phase is (series[-1][1] if series else Phase.UNKNOWN):
            return
        if series and series[-1][0] == step:
            series.pop()
        if not series or series[-1][1] is not phase:
            series.append((step, phase))
            most = max(_FEWEST_CHANGES, _MOST_CHANGES // len(self._changes))
            if len(series) > most:
                series[:] = collapsed(series, width_for(series[0][0], series[-1][0], most // 2))


_FRESH = DetectorState()
_INF = float("inf")
_MOST_PLAIN = 1000
_IN_THE_KEY = ("critical_ratio", "distinct_neurons", "n_neurons", "total_contraction")


def _is_read(name: str) -> bool:
    """Whether the detector may read a group's value of this name, which `_quiet_key` does not hold."""
    if name in _IN_THE_KEY:
        return False
    row = quantity(name)
    if row is None:
        return name.startswith(("betti", "log_bottleneck"))
    return row.probe != "distortion" or name == "twins_split"


def width_for(first: int, last: int, n_columns: int) -> int:
    """Return the smallest power of two such that `n_columns` columns of this width cover the steps `first` to `last`.

    Columns begin at multiples of the width.

    >>> width_for(0, 99, 30), width_for(0, 9, 30)
    (4, 1)
    """
    width = 1
    while last // width - first // width >= n_columns:
        width *= 2
    return width


def collapsed(changes: Sequence[Change], width: int) -> list[Change]:
    """Reduce changes of phase to columns of `width` steps; each column gets the worst phase that occurs in it.

    Changes are pairs (first step, phase) in order of steps, as in `PhaseFollower.phases`. The result too holds changes
    only: a column in the phase of the column before has no pair. Unknown counts as worse than preserved.

    >>> many = [(0, Phase.PRESERVED), (5, Phase.BREAKDOWN), (6, Phase.PRESERVED)]
    >>> collapsed(many, 4)
    [(0, <Phase.PRESERVED: 0>), (4, <Phase.BREAKDOWN: 3>), (8, <Phase.PRESERVED: 0>)]
    """
    if width <= 1:
        return list(changes)
    found: list[Change] = []
    held: Phase | None = None
    at = 0
    while at < len(changes):
        column = changes[at][0] // width
        present = {held} if held is not None and changes[at][0] % width else set()
        while at < len(changes) and changes[at][0] // width == column:
            held = changes[at][1]
            present.add(held)
            at += 1
        worst = next(phase for phase in _WORST_FIRST if phase in present)
        _append(found, max(column * width, changes[0][0]), worst)
        if at == len(changes) or changes[at][0] // width > column + 1 or changes[at][0] % width:
            _append(found, (column + 1) * width, held)
    return found


def _append(found: list[Change], step: int, phase: Phase | None) -> None:
    if phase is not None and (not found or found[-1][1] is not phase):
        found.append((step, phase))


def _keep_if(members: set[str], group: str, belongs: bool) -> None:
    if belongs:
        members.add(group)
    else:
        members.discard(group)


def _joined(whole: DetectorState, part: DetectorState) -> DetectorState:
    """Of two states that know of different groups, all."""
    of_network = {"finite", "curvature", "edge", "stability"}
    changes = {}
    for field in fields(DetectorState):
        mine, other = getattr(whole, field.name), getattr(part, field.name)
        if field.name in of_network:
            if other != getattr(_FRESH, field.name):
                changes[field.name] = other
        elif field.name != "measured":
            changes[field.name] = {**mine, **other}
    return replace(whole, **changes)


def followed(
    measurements: Iterable[Measurement], observe: Observe, rules: PhaseRules
) -> tuple[PhaseFollower, tuple[TopologyEvent, ...]]:
    """Follow recorded measurements to their end; the follower, and the events in the order of their making."""
    follower = PhaseFollower(observe, rules)
    return follower, tuple(event for measurement in measurements for event in follower.take(measurement))
