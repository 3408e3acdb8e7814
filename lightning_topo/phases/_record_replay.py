"""Replay a record: from its measurements if all are there, from its events if they were thinned."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases._detector import Replay, observe
from lightning_topo.phases._edge import EdgeSource
from lightning_topo.phases._event import DETECTED, EventName, TopologyEvent
from lightning_topo.phases._event_list import EventList
from lightning_topo.phases._following import PhaseFollower
from lightning_topo.phases._phase import Phase
from lightning_topo.phases._state import DetectorState


def replay_record(measurements: Sequence[Measurement], events: Iterable[TopologyEvent], *, complete: bool) -> Replay:
    """Find the phases and events of a recorded run: from its measurements if they are `complete`, else from its events.

    Measurements are complete if none were dropped or merged to save space. Records without coverage lines come from
    older versions and follow those versions' rules: the loss does not affect phases, the sharpness alone decides the
    edge of stability, and recorded instabilities replace detected ones.

    >>> calm = Measurement(1, 0, "distortion", "net.0", {"critical_ratio": 0.1})
    >>> replay_record([calm], [], complete=True).phases["net.0"]
    ((1, <Phase.PRESERVED: 0>),)
    """
    if complete:
        replayer = RecordReplayer(is_covered=any(m.probe == "coverage" for m in measurements))
        for m in measurements:
            replayer.take(m)
        return replayer.result(events)
    first: dict[str, int] = {}
    for m in measurements:
        if m.group != GLOBAL:
            first[m.group] = min(m.step, first.get(m.group, m.step))
    return replay_events(events, first)


class RecordReplayer:
    """Finds the phases and events of a recorded run one measurement at a time, in bounded memory.

    `replay_record` uses it if the measurements are complete. Of more than 20,000 events, `EventList` keeps a part.

    Args:
        is_covered: Whether the record has coverage lines, which hold the state of every step. Records of older versions
            have none; `replay_record` says which rules they follow.

    >>> replayer = RecordReplayer(is_covered=False)
    >>> replayer.take(Measurement(1, 0, "distortion", "net.0", {"critical_ratio": 0.1}))
    >>> replayer.result().phases["net.0"]
    ((1, <Phase.PRESERVED: 0>),)
    """

    def __init__(self, *, is_covered: bool) -> None:
        self.is_covered: bool = is_covered
        self._all = PhaseFollower(observe)
        self._phases = self._all if is_covered else PhaseFollower(observe)
        self._detected = EventList()

    @property
    def n_dropped(self) -> int:
        """The number of detected events that were dropped to bound the memory."""
        return self._detected.n_dropped

    def take(self, measurement: Measurement) -> None:
        """Pass on the next measurement, in the order of the record, to what detects phases and events."""
        if not self.is_covered:
            measurement = _without_later_edges(measurement)
            if measurement.probe != "training":
                self._phases.take(measurement)
        for event in self._all.take(measurement):
            self._detected.add(event)

    def result(self, events: Iterable[TopologyEvent] = ()) -> Replay:
        """Return the phases and events so far.

        `events` are the events recorded during training. They matter only if the record has no coverage lines: if any
        of them follows from measurements, the recorded instabilities replace the detected ones.
        """
        detected = tuple(self._detected)
        if not self.is_covered:
            written = [event for event in events if event.name in DETECTED]
            unstable = [event for event in written or detected if event.name is EventName.INSTABILITY]
            others = [event for event in detected if event.name is not EventName.INSTABILITY]
            detected = tuple(sorted([*others, *unstable], key=_step_of))
        return Replay(detected, self._phases.phases, self._all.state)


def _without_later_edges(m: Measurement) -> Measurement:
    if _LATER_EDGES.isdisjoint(m.values):
        return m
    return replace(m, values={name: value for name, value in m.values.items() if name not in _LATER_EDGES})


_LATER_EDGES = {source.quantity for source in EdgeSource if source is not EdgeSource.SHARPNESS}


def _step_of(event: TopologyEvent) -> int:
    return event.step


def replay_events(events: Iterable[TopologyEvent], first_steps: Mapping[str, int]) -> Replay:
    """Reconstruct the phases of a run from the events recorded during training, if its measurements are incomplete.

    `first_steps` maps each group to the step at which it was first measured; the group has no phase before. The
    result's `detected` holds the `events` that follow from measurements, in order of steps; its `state` is a fresh one.

    >>> broken = TopologyEvent(EventName.TOPOLOGY_BREAKDOWN, 7, 0, "net.0")
    >>> replay_events([broken], {"net.0": 1}).phases[""]
    ((1, <Phase.PRESERVED: 0>), (7, <Phase.BREAKDOWN: 3>))
    """
    ordered = tuple(sorted((event for event in events if event.name in DETECTED), key=_step_of))
    begins = dict(first_steps) | {GLOBAL: min(first_steps.values(), default=0)}
    changes: dict[str, list[tuple[int, Phase]]] = {
        group: [(step, Phase.PRESERVED)] for group, step in begins.items() if first_steps
    }
    changes.setdefault(GLOBAL, [])
    broken: set[str] = set()
    at_edge = unprotected = False
    for event in ordered:
        match event.name:
            case EventName.TOPOLOGY_BREAKDOWN:
                broken.add(event.group)
            case EventName.TOPOLOGY_RESTORED:
                broken.discard(event.group)
            case EventName.EDGE_OF_STABILITY_ENTER | EventName.EDGE_OF_STABILITY_EXIT:
                at_edge = event.name is EventName.EDGE_OF_STABILITY_ENTER
            case EventName.CURVATURE_BOUND_EXCEEDED | EventName.CURVATURE_BOUND_RESTORED:
                unprotected = event.name is EventName.CURVATURE_BOUND_EXCEEDED
            case _:
                continue
        rest = Phase.EDGE_OF_STABILITY if at_edge else Phase.UNPROTECTED if unprotected else Phase.PRESERVED
        for group, series in changes.items():
            phase = Phase.BREAKDOWN if group in broken or (group == GLOBAL and broken) else rest
            _append(series, max(event.step, begins.get(group, 0)), phase)
    return Replay(ordered, {group: tuple(series) for group, series in changes.items()}, DetectorState())


def _append(series: list[tuple[int, Phase]], step: int, phase: Phase) -> None:
    """Note a change of phase; of several at one step the last counts."""
    if series and series[-1][1] is phase:
        return
    if series and series[-1][0] == step:
        series.pop()
    if not series or series[-1][1] is not phase:
        series.append((step, phase))
