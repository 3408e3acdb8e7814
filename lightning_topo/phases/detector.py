"""The state machine from measurements to phases and events.

`observe` is a pure step (state, measurement) -> (state, events), so that a run can be followed live, resumed from
a checkpoint, or replayed from its record, all with the same result.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import messages
from lightning_topo.phases.event import TopologyEvent
from lightning_topo.phases.phase import Phase
from lightning_topo.phases.rules import Band, PhaseRules


@dataclass(frozen=True, slots=True)
class BandState:
    """Whether a quantity is inside its band, and the recent values that decide when that changes."""

    inside: bool = False
    recent: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A group's span of breakdown that is not over yet."""

    since: int
    peak: float
    peak_step: int
    quiet_steps: int = 0


@dataclass(frozen=True, slots=True)
class DetectorState:
    """All that the detector remembers. A fresh one has measured nothing."""

    measured: bool = False
    curvature: BandState = BandState()
    edge: BandState = BandState()
    breakdowns: Mapping[str, Breakdown] = field(default_factory=dict)

    @property
    def phase(self) -> Phase:
        """The phase of the whole network: the highest that holds."""
        return max((self.phase_of(group) for group in self.breakdowns), default=self.phase_of(GLOBAL))

    def phase_of(self, group: str) -> Phase:
        """The phase of one group: its own breakdown, else the curvature phase of the whole network."""
        if group in self.breakdowns:
            return Phase.BREAKDOWN
        if self.edge.inside:
            return Phase.EDGE_OF_STABILITY
        if self.curvature.inside:
            return Phase.UNPROTECTED
        return Phase.PRESERVED if self.measured else Phase.UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, tuples and numbers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "DetectorState":
        """The inverse of `to_dict`."""

        def band(plain: Mapping[str, Any]) -> BandState:
            return BandState(plain["inside"], tuple(plain["recent"]))

        breakdowns = {group: Breakdown(**span) for group, span in state["breakdowns"].items()}
        return cls(state["measured"], band(state["curvature"]), band(state["edge"]), breakdowns)


def observe(
    state: DetectorState, measurement: Measurement, rules: PhaseRules = PhaseRules()
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    """Take in one measurement: the next state, and the events that it made.

    Reads `critical_ratio` of a group, and `eta_lambda` and `sharpness_ratio` of the whole network; other values
    pass by. NaN says nothing and is skipped.

    >>> state, events = observe(DetectorState(), Measurement(7, 0, "distortion", "net.0", {"critical_ratio": 1.3}))
    >>> state.phase, events[0].name
    (<Phase.BREAKDOWN: 3>, <EventName.TOPOLOGY_BREAKDOWN: 'topology_breakdown'>)
    """
    events: list[TopologyEvent] = []
    values = {name: value for name, value in measurement.values.items() if not math.isnan(value)}
    if "critical_ratio" in values and measurement.group != GLOBAL:
        state, event = _observe_ratio(state, measurement, values["critical_ratio"], rules)
        events += [event] if event else []
    if "eta_lambda" in values:
        band, level = _advance(state.curvature, values["eta_lambda"], rules.curvature)
        if band.inside != state.curvature.inside:
            events.append(messages.curvature(measurement, band.inside, level, rules.curvature))
        state = replace(state, curvature=band, measured=True)
    if "sharpness_ratio" in values:
        band, level = _advance(state.edge, values["sharpness_ratio"], rules.edge)
        if band.inside != state.edge.inside:
            events.append(messages.edge(measurement, band.inside, level, rules.edge))
        state = replace(state, edge=band, measured=True)
    return state, tuple(events)


def _advance(state: BandState, value: float, band: Band) -> tuple[BandState, float]:
    """The next state of a band, and the median that decided it."""
    recent = (*state.recent, value)[-band.memory :]
    size = band.leave_window if state.inside else band.enter_window
    level = median(recent[-size:])
    full = len(recent) >= size
    inside = not (full and level < band.leave) if state.inside else full and level >= band.enter
    return BandState(inside, recent), level


def _observe_ratio(
    state: DetectorState, measurement: Measurement, ratio: float, rules: PhaseRules
) -> tuple[DetectorState, TopologyEvent | None]:
    group, step = measurement.group, measurement.step
    spans = dict(state.breakdowns)
    span = spans.get(group)
    event = None
    if ratio >= rules.critical_ratio:
        if span is None:
            span = Breakdown(since=step, peak=ratio, peak_step=step)
            event = messages.breakdown(measurement, ratio, rules)
        elif ratio > span.peak:
            span = replace(span, peak=ratio, peak_step=step)
        spans[group] = replace(span, quiet_steps=0)
    elif span is not None:
        spans[group] = replace(span, quiet_steps=span.quiet_steps + 1)
        if spans[group].quiet_steps >= rules.hold_steps:
            del spans[group]
            event = messages.restored(measurement, span.since, span.peak, span.peak_step, rules)
    return replace(state, measured=True, breakdowns=spans), event


@dataclass(frozen=True, slots=True)
class Replay:
    """A whole run, seen again: the events, and at which steps the phase of each group changed to what.

    `phases[""]` is the whole network. Each entry is a tuple of (step, phase), in the order of steps.
    """

    events: tuple[TopologyEvent, ...]
    phases: Mapping[str, tuple[tuple[int, Phase], ...]]
    state: DetectorState


def replay(measurements: Iterable[Measurement], rules: PhaseRules = PhaseRules()) -> Replay:
    """Follow recorded measurements, in the order in which they were recorded.

    >>> run = replay([Measurement(k, 0, "distortion", "net.0", {"critical_ratio": 0.1 * k}) for k in range(12)])
    >>> run.phases[""]
    ((0, <Phase.PRESERVED: 0>), (10, <Phase.BREAKDOWN: 3>))
    """
    state = DetectorState()
    events: list[TopologyEvent] = []
    changes: dict[str, list[tuple[int, Phase]]] = {GLOBAL: []}
    for measurement in measurements:
        state, new = observe(state, measurement, rules)
        events += new
        changes.setdefault(measurement.group, [])
        for group, series in changes.items():
            phase = state.phase if group == GLOBAL else state.phase_of(group)
            if phase is Phase.UNKNOWN or (series and series[-1][1] is phase):
                continue
            if series and series[-1][0] == measurement.step:
                series.pop()
            if not series or series[-1][1] is not phase:
                series.append((measurement.step, phase))
    return Replay(tuple(events), {group: tuple(series) for group, series in changes.items()}, state)
