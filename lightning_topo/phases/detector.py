"""The state machine from measurements to phases and events.

`observe` is a pure step (state, measurement) -> (state, events), so that a run can be followed live, resumed from
a checkpoint, or replayed from its record, all with the same result.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import messages
from lightning_topo.phases.changes import (
    FloorState,
    LevelState,
    SpanState,
    StabilityState,
    follow_floor,
    follow_level,
    follow_span,
    follow_stability,
)
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
    """All that the detector remembers. A fresh one has measured nothing.

    `distinct` and `splits` are kept by group, `betti` and `jumps` by quantity and group: "betti_0 net.0".
    """

    measured: bool = False
    curvature: BandState = BandState()
    edge: BandState = BandState()
    breakdowns: Mapping[str, Breakdown] = field(default_factory=dict)
    stability: StabilityState = field(default_factory=StabilityState)
    distinct: Mapping[str, FloorState] = field(default_factory=dict)
    splits: Mapping[str, SpanState] = field(default_factory=dict)
    betti: Mapping[str, LevelState] = field(default_factory=dict)
    jumps: Mapping[str, SpanState] = field(default_factory=dict)

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
        """The inverse of `to_dict`; what an older version did not know yet is as in a fresh state.

        Raises `KeyError`, `TypeError`, `AttributeError` or `ValueError` where it is no such state.
        """

        def numbers(plain: Iterable[Any]) -> tuple[float, ...]:
            return tuple(float(value) for value in plain)

        def number(plain: Any) -> float | None:
            return None if plain is None else float(plain)

        def each(name: str, kind: Callable[..., Any]) -> dict[str, Any]:
            return {str(key): kind(**plain) for key, plain in state.get(name, {}).items()}

        def band(plain: Mapping[str, Any]) -> BandState:
            return BandState(bool(plain["inside"]), numbers(plain["recent"]))

        def span(inside: Any, quiet: Any) -> SpanState:
            return SpanState(bool(inside), int(quiet))

        def breakdown(since: Any, peak: Any, peak_step: Any, quiet_steps: Any) -> Breakdown:
            return Breakdown(int(since), float(peak), int(peak_step), int(quiet_steps))

        seen = state.get("stability", asdict(StabilityState()))
        return cls(
            measured=bool(state["measured"]),
            curvature=band(state["curvature"]),
            edge=band(state["edge"]),
            breakdowns=each("breakdowns", breakdown),
            stability=StabilityState(numbers(seen["losses"]), number(seen["ratio"]), span(**seen["span"])),
            distinct=each("distinct", lambda floor, recent: FloorState(number(floor), numbers(recent))),
            splits=each("splits", span),
            betti=each("betti", lambda reported, differing: LevelState(number(reported), numbers(differing))),
            jumps=each("jumps", span),
        )


def observe(
    state: DetectorState, measurement: Measurement, rules: PhaseRules = PhaseRules()
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    """Take in one measurement: the next state, and the events that it made.

    Reads of a group its `critical_ratio`, `distinct_neurons`, `twins_split`, `betti_k` and `log_bottleneck_k`, of the
    whole network `eta_lambda`, `sharpness_ratio` and the training's `loss`; other values pass by. NaN says nothing and
    is skipped, but for a loss.

    >>> state, events = observe(DetectorState(), Measurement(7, 0, "distortion", "net.0", {"critical_ratio": 1.3}))
    >>> state.phase, events[0].name
    (<Phase.BREAKDOWN: 3>, <EventName.TOPOLOGY_BREAKDOWN: 'topology_breakdown'>)
    """
    values = {name: value for name, value in measurement.values.items() if not math.isnan(value)}
    seen = replace(measurement, values=values)
    if measurement.group != GLOBAL:
        return _observe_group(state, seen, rules)
    loss = measurement.values.get("loss") if measurement.probe == "training" else None
    return _observe_network(state, seen, loss, rules)


def _observe_network(
    state: DetectorState, measurement: Measurement, loss: float | None, rules: PhaseRules
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    values, events = measurement.values, []
    if "eta_lambda" in values:
        band, level = _advance(state.curvature, values["eta_lambda"], rules.curvature)
        if band.inside != state.curvature.inside:
            events.append(messages.curvature(measurement, band.inside, level, rules.curvature))
        state = replace(state, curvature=band, measured=True)
    ratio = values.get("sharpness_ratio")
    if ratio is not None:
        band, level = _advance(state.edge, ratio, rules.edge)
        if band.inside != state.edge.inside:
            events.append(messages.edge(measurement, band.inside, level, rules.edge))
        state = replace(state, edge=band, measured=True)
    if ratio is not None or loss is not None:
        stability, fired = follow_stability(state.stability, loss, ratio, rules)
        if fired:
            events.append(messages.instability(measurement, loss, stability.ratio, rules))
        state = replace(state, stability=stability)
    return state, tuple(events)


def _observe_group(
    state: DetectorState, measurement: Measurement, rules: PhaseRules
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    group, values = measurement.group, measurement.values
    events: list[TopologyEvent] = []
    if "critical_ratio" in values:
        state, event = _observe_ratio(state, measurement, values["critical_ratio"], rules)
        events += [event] if event else []
    if "distinct_neurons" in values:
        before = state.distinct.get(group, FloorState())
        floor, fired = follow_floor(before, values["distinct_neurons"], rules.merge_confirm)
        # At the first measurement there is no count to compare with, but a pair whose distance has closed.
        if fired or (before.floor is None and values.get("total_contraction") == 0.0):
            events.append(messages.merged(measurement, values["distinct_neurons"], before.floor))
        state = replace(state, distinct={**state.distinct, group: floor})
    if "twins_split" in values:
        count = values["twins_split"]
        span, fired = follow_span(
            state.splits.get(group, SpanState()), active=count > 0, quiet=True, hold=rules.hold_steps
        )
        if fired:
            events.append(messages.split(measurement, count))
        state = replace(state, splits={**state.splits, group: span})
    for name, value in values.items():
        kind, _, k = name.rpartition("_")
        key = f"{name} {group}"
        if kind == "betti":
            before = state.betti.get(key, LevelState())
            level, fired = follow_level(before, value, rules.betti_confirm)
            if fired and before.reported is not None:
                events.append(messages.betti(measurement, k, value, before.reported))
            state = replace(state, betti={**state.betti, key: level})
        elif kind == "log_bottleneck" and k.isdigit():
            far, near = value > rules.diagram_jump, value <= 0.5 * rules.diagram_jump
            span, fired = follow_span(state.jumps.get(key, SpanState()), active=far, quiet=near, hold=1)
            if fired:
                events.append(messages.jump(measurement, k, value, values.get("log_bottleneck_bound"), rules))
            state = replace(state, jumps={**state.jumps, key: span})
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

    `phases[""]` is the whole network. Each entry is a tuple of (step, phase), in the order of steps. `detected` holds
    every event that follows from the measurements, in the order of their making.
    """

    detected: tuple[TopologyEvent, ...]
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
