"""What a run came to: the facts that the verdict, the summary and the comparison of runs are made of."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from lightning_topo._figures.coverage import Stretch, of_network, stretches
from lightning_topo._figures.rates import edge_source, held_ratios
from lightning_topo.measurement import GLOBAL, Measurement, OpenCause, StepState
from lightning_topo.outputs.page._loss_course import Level, LossCourse
from lightning_topo.outputs.record import RunRecord
from lightning_topo.outputs.record._read import Digest
from lightning_topo.phases import DETECTED, NOTES, EventName, Phase, Replay, TopologyEvent, replay_record
from lightning_topo.phases._edge import EdgeSource

_LIMITS = frozenset({"eta_lambda", *(source.quantity for source in EdgeSource)})


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest value of a quantity: where and when it was attained."""

    value: float
    group: str
    step: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many steps are in each state, where a step counts as its weakest group.

    `pending` steps have been taken since the last coverage line. `peak_bound` is the largest bound of a bounded step,
    `first_open` the first steps that are open, and `causes` why steps are, as far as the record says.
    """

    exact: int
    bounded: int
    spanned: int
    open: int
    pending: int = 0
    peak_bound: Peak | None = None
    first_open: Stretch | None = None
    causes: tuple[OpenCause, ...] = ()

    @property
    def certified(self) -> int:
        """Steps whose r was measured or is bounded below 1."""
        return self.exact + self.bounded

    @property
    def total(self) -> int:
        """All steps of the run."""
        return self.certified + self.spanned + self.open + self.pending


@dataclass(frozen=True, slots=True)
class Between:
    """When something changed: at the step `last` it was seen first, at `first` (None: never) it was seen not to be."""

    first: int | None
    last: int

    def __str__(self) -> str:
        """In words.

        >>> str(Between(25, 50)), str(Between(49, 50)), str(Between(None, 1))
        ('between steps 25 and 50', 'at step 50', 'at step 1')
        """
        if self.first is None or self.first + 1 >= self.last:
            return f"at step {self.last:,}"
        return f"between steps {self.first:,} and {self.last:,}"


@dataclass(frozen=True, slots=True)
class EdgeRatio:
    """How close to the edge of stability a run was last, 1 at the edge, by the quantity that decides."""

    quantity: str
    value: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The step at which a gate has stopped the training, and the names of the events it has counted; none if quiet."""

    step: int
    events: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The facts of one run; None for what was not measured or did not happen.

    `peak_ratio` is the largest critical ratio of those at `n_ratio_steps` steps; `breakdowns` the first breakdown of
    each group that had one, by step. `phase` is the phase at the last step, `worst_phase` the highest of all.
    """

    n_groups: int
    first_step: int | None
    last_step: int | None
    phase: Phase
    worst_phase: Phase
    n_events: int
    breakdowns: tuple[TopologyEvent, ...]
    curvature_step: int | None
    edge_step: int | None
    peak_ratio: Peak | None
    n_ratio_steps: int
    final_loss: float | None
    nonfinite_loss_step: int | None
    edge: EdgeRatio | None
    n_notes: int = 0
    """Those of the events that only tell how the run is watched."""
    instability: TopologyEvent | None = None
    coverage: Coverage | None = None
    """None in a record without coverage lines."""
    broken_since: Between | None = None
    """The first critical step, and before it the last that is known to be none in that group."""
    edge_since: Between | None = None
    curvature_since: Between | None = None
    measured: tuple[str, ...] = ()
    """Which of the edge ratios and of `eta_lambda` were measured at all."""
    finite_again: bool = False
    """Whether the loss has become finite again after it was not."""
    has_recovered: bool = False
    """Whether that is all that was unstable, and it has left no trace in the loss: a batch may have been bad."""
    lost: Level | None = None
    """Where the loss was lowest, if it had fallen and came back to where it began."""
    n_held: int = 0
    """At how many of the measured steps a guard has held an update back."""
    stop: Stop | None = None
    """Where a gate has asked for the end of the training."""

    @property
    def broken_first(self) -> tuple[TopologyEvent, ...]:
        """The breakdowns at the first step at which a group broke down."""
        return tuple(event for event in self.breakdowns if event.step == self.breakdowns[0].step)

    @property
    def diverged_step(self) -> int | None:
        """The first step with an instability or with a loss that is not finite."""
        steps = [self.nonfinite_loss_step, None if self.instability is None else self.instability.step]
        return min((step for step in steps if step is not None), default=None)


@dataclass(frozen=True, slots=True)
class History:
    """A record seen again: the replayed phases, all events in the order of steps, and what the run came to."""

    replay: Replay
    events: tuple[TopologyEvent, ...]
    outcome: Outcome


def history(record: RunRecord) -> History:
    """Replay a record's measurements; of the record's own list come the events that no measurement makes (a gap).

    Of a thinned record all events do: fewer measurements would tell another story.
    """
    digest = record.digest
    is_whole = record.thinned is None
    seen = digest.replay if digest else replay_record(record.measurements, record.events, complete=is_whole)
    other = [event for event in record.events if event.name not in DETECTED]
    events = tuple(sorted((*seen.detected, *other), key=lambda event: event.step))
    return History(seen, events, _outcome(record.measurements, events, seen, digest))


def _stop(whole: Sequence[Measurement]) -> Stop | None:
    """What the last gate that stopped the training has left in the record."""
    stops = [m for m in whole if m.probe == "gate" and m.values.get("stopped") == 1.0]
    if not stops:
        return None
    counts = {name: n for name, n in stops[-1].values.items() if name not in ("stopped", "quiet_captures")}
    return Stop(stops[-1].step, tuple(name for name, n in counts.items() if n > 0.0))


def _outcome(
    measurements: Sequence[Measurement],
    events: Sequence[TopologyEvent],
    seen_again: Replay,
    digest: Digest | None = None,
) -> Outcome:
    steps = [m.step for m in measurements]
    seen = [phase for _, phase in seen_again.phases[GLOBAL]]
    breakdowns: dict[str, TopologyEvent] = {}
    for event in events:
        if event.name is EventName.TOPOLOGY_BREAKDOWN:
            breakdowns.setdefault(event.group, event)
    whole = [m for m in measurements if m.group == GLOBAL]
    losses = series(whole, "training", "loss")
    nonfinite = [step for step, loss in losses if not math.isfinite(loss)]
    course = LossCourse(dict(losses))
    unstable = [event for event in events if event.name is EventName.INSTABILITY]
    return Outcome(
        n_groups=len({m.group for m in measurements} - {GLOBAL}),
        first_step=min(steps, default=None),
        last_step=max(steps, default=None),
        phase=seen[-1] if seen else Phase.UNKNOWN,
        worst_phase=max(seen, default=Phase.UNKNOWN),
        n_events=len(events) + (0 if digest is None else digest.n_dropped_events),
        breakdowns=tuple(breakdowns.values()),
        curvature_step=_first_step(events, EventName.CURVATURE_BOUND_EXCEEDED),
        edge_step=_first_step(events, EventName.EDGE_OF_STABILITY_ENTER),
        peak_ratio=_peak(measurements),
        n_held=len(held_ratios(measurements)),
        stop=_stop(whole),
        n_ratio_steps=_n_ratio_steps(measurements) if digest is None else digest.n_ratio_steps,
        final_loss=losses[-1][1] if losses else None,
        nonfinite_loss_step=nonfinite[0] if nonfinite else None,
        edge=_edge_ratio(whole),
        n_notes=sum(event.name in NOTES for event in events),
        instability=next(iter(unstable), None),
        coverage=_coverage(measurements, digest),
        broken_since=_broken_since(measurements, next(iter(breakdowns.values()), None), digest),
        edge_since=_edge_since(whole, events),
        curvature_since=_crossed(whole, "eta_lambda", events, EventName.CURVATURE_BOUND_EXCEEDED),
        measured=tuple(sorted(_LIMITS & {name for m in whole for name in m.values})),
        finite_again=bool(nonfinite) and math.isfinite(losses[-1][1]),
        has_recovered=course.has_recovered and {event.step for event in unstable}.issubset(nonfinite),
        lost=course.lost,
    )


def _broken_since(
    measurements: Sequence[Measurement], event: TopologyEvent | None, digest: Digest | None
) -> Between | None:
    """Between the last step of the group that is known to be below 1, and the first that was measured above."""
    if event is None:
        return None
    if digest is not None:
        below = digest.last_below.get(event.group)
        return Between(None if below is None else min(below, event.step - 1), event.step)
    own = [m for m in measurements if m.group == event.group and m.step < event.step]
    known = [m.step for m in own if m.values.get("critical_ratio", math.inf) < 1.0]
    known += [
        min(stretch.last, event.step - 1)
        for stretch in stretches(measurements).get(event.group, ())
        if stretch.state.certified and stretch.first < event.step
    ]
    return Between(max(known, default=None), event.step)


def _edge_ratio(whole: Sequence[Measurement]) -> EdgeRatio | None:
    source = edge_source(whole)
    return None if source is None else EdgeRatio(source.quantity, series(whole, None, source.quantity)[-1][1])


def _edge_since(whole: Sequence[Measurement], events: Sequence[TopologyEvent]) -> Between | None:
    event = next((event for event in events if event.name is EventName.EDGE_OF_STABILITY_ENTER), None)
    if event is None:
        return None
    source = next((s for s in EdgeSource if f"source: {s}" in event.message), EdgeSource.SHARPNESS)
    return _crossed(whole, source.quantity, events, EventName.EDGE_OF_STABILITY_ENTER)


def _crossed(
    whole: Sequence[Measurement], name: str, events: Sequence[TopologyEvent], kind: EventName
) -> Between | None:
    """Where a quantity crossed its threshold: an event waits for a median, the crossing itself lies before it."""
    event = next((event for event in events if event.name is kind), None)
    if event is None:
        return None
    points = [(m.step, m.values[name]) for m in whole if name in m.values and m.step <= event.step]
    threshold = 1.0 if event.threshold is None else event.threshold
    recent = sorted(points)[-5:]
    above = event.step
    for step, value in reversed(recent):  # the last stretch above, back to where it began, an outlier apart
        if value >= threshold:
            above = step
        elif sum(v >= threshold for s, v in recent if s < step) < 1:
            break
    return Between(max((step for step, _ in points if step < above), default=None), above)


def _n_ratio_steps(measurements: Sequence[Measurement]) -> int:
    return len({m.step for m in measurements if not math.isnan(m.values.get("critical_ratio", math.nan))})


def _coverage(measurements: Sequence[Measurement], digest: Digest | None) -> Coverage | None:
    """The counts of a record's coverage lines; None where it has none."""
    by_group = stretches(measurements)
    if not by_group:
        return None
    taken = [m.step for m in measurements]
    if digest is None:
        whole = of_network(by_group, since=min(min(taken), min(lines[0].first for lines in by_group.values()) - 1))
    else:
        whole = digest.network
    counts = dict.fromkeys(StepState, 0)
    for stretch in whole:
        counts[stretch.state] += stretch.last - stretch.first + 1
    bounds = [
        Peak(stretch.bound, group, stretch.last)
        for group, lines in by_group.items()
        for stretch in lines
        if stretch.bound is not None
    ]
    doubtful = [s for lines in by_group.values() for s in lines if s.state is StepState.OPEN and s.cause is not None]
    causes = dict.fromkeys(s.cause for s in sorted(doubtful, key=lambda s: s.first) if s.cause is not None)
    return Coverage(
        exact=counts[StepState.EXACT],
        bounded=counts[StepState.BOUNDED],
        spanned=counts[StepState.SPANNED],
        open=counts[StepState.OPEN],
        pending=max(taken) - whole[-1].last,
        peak_bound=max(bounds, key=lambda peak: peak.value, default=None),
        first_open=next((stretch for stretch in whole if stretch.state is StepState.OPEN), None),
        causes=tuple(causes),
    )


def series(measurements: Iterable[Measurement], probe: str | None, name: str) -> list[tuple[int, float]]:
    """One quantity by step, from the measurements of one group by a probe, or by any."""
    found = [(m.step, m.values[name]) for m in measurements if probe in (None, m.probe) and name in m.values]
    return sorted(found, key=itemgetter(0))


def _first_step(events: Iterable[TopologyEvent], name: EventName) -> int | None:
    return next((event.step for event in events if event.name is name), None)


def _peak(measurements: Iterable[Measurement]) -> Peak | None:
    peak: Peak | None = None
    for m in measurements:
        ratio = m.values.get("critical_ratio", math.nan)
        # A comparison with NaN is false: NaN never becomes the peak.
        if m.group != GLOBAL and ratio >= (0.0 if peak is None else peak.value):
            peak = peak if peak is not None and ratio == peak.value else Peak(ratio, m.group, m.step)
    return peak
