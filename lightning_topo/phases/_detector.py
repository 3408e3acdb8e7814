"""The state machine from measurements to phases and events.

`observe` is a pure step (state, measurement) -> (state, events), so that a run can be followed live, resumed from
a checkpoint, or replayed from its record, all with the same result.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lightning_topo.measurement import GLOBAL, Measurement, StepState
from lightning_topo.phases import _messages as messages
from lightning_topo.phases._changes import (
    FloorState,
    LevelState,
    SpanState,
    follow_decline,
    follow_floor,
    follow_level,
    follow_span,
)
from lightning_topo.phases._coverage import follow_coverage
from lightning_topo.phases._edge import EDGE_QUANTITIES, EdgeSource, advance, follow_edge, known_ratios
from lightning_topo.phases._event import TopologyEvent
from lightning_topo.phases._following import followed
from lightning_topo.phases._instability import follow_stability
from lightning_topo.phases._phase import Phase
from lightning_topo.phases._rules import PhaseRules
from lightning_topo.phases._state import Breakdown, DetectorState

_LARGE = 3.0
"""A fall by this many times the margin, and by more than this many neurons, needs no second capture."""


def observe(
    state: DetectorState, measurement: Measurement, rules: PhaseRules = PhaseRules()
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    """Update the detector's state with one measurement; return the new state and any new events.

    These values change phases or cause events:

    - of a group: `critical_ratio`, `distinct_neurons`, `n_neurons`, `twins_split`, `betti_k`, `log_bottleneck_k`,
      `vanishing_neurons`, `aligned_clusters`, and for comparison `total_contraction`, `measured_neurons` and the counts
      `*_at_start`;
    - of the whole network (group ""): `eta_lambda` and the edge ratios, whose names `EdgeSource` lists;
    - of the probe "training": `loss`;
    - of the probe "coverage", for a group's steps after `from` up to the measurement's step: `state` (`StepState`) and
      `bound`, an upper bound of the critical ratio.

    Other values change nothing, but may appear in an event's message. A value that is NaN is ignored, with two
    exceptions: a loss that is NaN is an instability, and a bound that is NaN certifies nothing.

    >>> state, events = observe(DetectorState(), Measurement(7, 0, "distortion", "net.0", {"critical_ratio": 1.3}))
    >>> state.phase, events[0].name
    (<Phase.BREAKDOWN: 3>, <EventName.TOPOLOGY_BREAKDOWN: 'topology_breakdown'>)
    """
    if measurement.probe == "coverage":
        return _observe_coverage(state, measurement, rules)
    seen = measurement
    if any(map(math.isnan, measurement.values.values())):
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
        band, level = advance(state.curvature, values["eta_lambda"], rules.curvature)
        if band.inside != state.curvature.inside:
            events.append(messages.curvature(measurement, band.inside, level, rules.curvature))
        state = replace(state, curvature=band, measured=True)
    ratio = None
    if not EDGE_QUANTITIES.isdisjoint(values):  # most lines have a loss alone
        edge, change = follow_edge(state.edge, measurement.step, _edge_ratios(state, measurement), rules)
        if change is not None:
            events.append(messages.edge(measurement, change, change.source.band(rules)))
        known = known_ratios(values)
        measured = {source.quantity for source in edge.measured(measurement.step)}
        deciding = (source.quantity for source in edge.deciding(measurement.step, rules))
        ratio = next((known[name] for name in deciding if name in known), None)
        state = replace(state, edge=edge, measured=state.measured or not measured.isdisjoint(known))
    if ratio is not None or loss is not None:
        stability, found = follow_stability(
            state.stability,
            measurement.step,
            loss,
            ratio,
            at_edge=state.edge.inside,
            is_broken=bool(state.breakdowns),
            rules=rules,
        )
        if found is not None:
            events.append(messages.instability(measurement, found, rules))
        finite = state.finite if loss is None else math.isfinite(loss)
        state = replace(state, stability=stability, finite=finite)
    return state, tuple(events)


def _edge_ratios(state: DetectorState, measurement: Measurement) -> Mapping[str, float]:
    """The values, less a directional ratio on other samples where that of the step's own batch is measured besides."""
    values = measurement.values
    has_own = EdgeSource.CRITICAL.value in state.edge.bands
    if measurement.probe != "sharpness" or not has_own:
        return values
    return {name: value for name, value in values.items() if name != EdgeSource.DIRECTIONAL.quantity}


def _observe_coverage(
    state: DetectorState, measurement: Measurement, rules: PhaseRules
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    """What is known of a run of steps; those with a bound below 1 count towards the end of a breakdown."""
    group, values = measurement.group, measurement.values
    begins = values.get("from", math.nan)
    code, bound = values.get("state", math.nan), values.get("bound")
    run = follow_coverage(state.coverage.get(group), begins, measurement.step, code, bound)
    state = replace(state, coverage={**state.coverage, group: run})
    if run.state is not StepState.BOUNDED or group not in state.breakdowns:
        return state, ()
    return _quiet(state, measurement, max(measurement.step - int(begins), 1), rules)


def _observe_group(
    state: DetectorState, measurement: Measurement, rules: PhaseRules
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    group, values = measurement.group, measurement.values
    events: list[TopologyEvent] = []
    if "critical_ratio" in values:
        state, found = _observe_ratio(state, measurement, values["critical_ratio"], rules)
        events += found
    if "distinct_neurons" in values:
        before, size = state.distinct.get(group, FloorState()), values.get("n_neurons")
        if size is not None and before.size not in (None, size):
            state = _with_others(state, group)
        floor, fired = follow_floor(before, values["distinct_neurons"], rules.merge_confirm, size)
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
            margin = max(1.0, rules.betti_share * (before.reported or 0.0))
            level, fired = follow_level(before, value, rules.betti_confirm, margin)
            if fired and before.reported is not None:
                events.append(messages.betti(measurement, k, value, before.reported))
            state = replace(state, betti={**state.betti, key: level})
        elif kind == "log_bottleneck" and k.isdigit():
            far, near = value > rules.diagram_jump, value <= 0.5 * rules.diagram_jump
            span, fired = follow_span(state.jumps.get(key, SpanState()), active=far, quiet=near, hold=1)
            if fired:
                events.append(messages.jump(measurement, k, value, values.get("log_bottleneck_bound"), rules))
            state = replace(state, jumps={**state.jumps, key: span})
    state, found = _observe_fate(state, measurement, rules)
    return state, (*events, *found)


def _with_others(state: DetectorState, group: str) -> DetectorState:
    """The state once a group has lost or gained neurons: no count of them can be compared with those before."""
    others = {
        name: {key: value for key, value in getattr(state, name).items() if key.partition(" ")[2] != group}
        for name in ("betti", "fates", "jumps")
    }
    return replace(state, **others)


def _observe_fate(
    state: DetectorState, measurement: Measurement, rules: PhaseRules
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    """Neurons that shrink to nothing, or turn into the same directions."""
    events: list[TopologyEvent] = []
    n = measurement.values.get("measured_neurons", 0.0)  # 0: of how many is not known
    margin = max(1.0, rules.fate_share * n)
    for name, sign, message in (
        ("vanishing_neurons", -1.0, messages.vanishing),
        ("aligned_clusters", 1.0, messages.condensing),
    ):
        if name not in measurement.values:
            continue
        key, count = f"{name} {measurement.group}", measurement.values[name]
        at_start = measurement.values.get(f"{name}_at_start")
        before = state.fates.get(key, LevelState(None if at_start is None else sign * at_start))
        fall = 0.0 if before.reported is None else before.reported - sign * count
        is_large = n > 0.0 and fall >= _LARGE * margin and fall > _LARGE
        level, fired = follow_decline(before, sign * count, 1 if is_large else rules.fate_confirm, margin)
        if fired and before.reported is not None:
            events.append(message(measurement, count, sign * before.reported))
        state = replace(state, fates={**state.fates, key: level})
    return state, tuple(events)


def _observe_ratio(
    state: DetectorState, measurement: Measurement, ratio: float, rules: PhaseRules
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    group, step = measurement.group, measurement.step
    state = replace(state, measured=True)
    span = state.breakdowns.get(group)
    if ratio < rules.critical_ratio:
        return (state, ()) if span is None else _quiet(state, measurement, 1, rules)
    begins = span is None
    if span is None or ratio > span.peak:
        span = Breakdown(step if span is None else span.since, ratio, step)
    state = replace(state, breakdowns={**state.breakdowns, group: replace(span, quiet_steps=0)})
    return state, ((messages.breakdown(measurement, ratio, rules),) if begins else ())


def _quiet(
    state: DetectorState, measurement: Measurement, steps: int, rules: PhaseRules
) -> tuple[DetectorState, tuple[TopologyEvent, ...]]:
    """So many steps of a group that has broken down had r < 1."""
    spans, group = dict(state.breakdowns), measurement.group
    span = spans[group] = replace(spans[group], quiet_steps=spans[group].quiet_steps + steps)
    if span.quiet_steps < rules.hold_steps:
        return replace(state, breakdowns=spans), ()
    del spans[group]
    event = messages.restored(measurement, span.since, span.peak, span.peak_step, rules)
    return replace(state, breakdowns=spans), (event,)


@dataclass(frozen=True, slots=True)
class Replay:
    """The phases and events of a whole run, as `replay` finds them.

    - `detected` holds the events that follow from the measurements.
    - `phases` maps each group (`""` is the whole network) to its changes of phase: pairs (first step, phase) in order
      of steps.
    - `state` is the detector's state at the end; in a result of `replay_events` it is a fresh state.
    """

    detected: tuple[TopologyEvent, ...]
    phases: Mapping[str, tuple[tuple[int, Phase], ...]]
    state: DetectorState


def replay(measurements: Iterable[Measurement], rules: PhaseRules = PhaseRules()) -> Replay:
    """Find the phases and events of a run from its measurements, in the order in which they were recorded.

    >>> run = replay([Measurement(k, 0, "distortion", "net.0", {"critical_ratio": 0.1 * k}) for k in range(12)])
    >>> run.phases[""]
    ((0, <Phase.PRESERVED: 0>), (10, <Phase.BREAKDOWN: 3>))
    """
    follower, events = followed(measurements, observe, rules)
    return Replay(events, follower.phases, follower.state)
