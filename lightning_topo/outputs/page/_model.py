"""A record as the data of its page: everything that is counted, thinned or rounded, is so here."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any
from zipfile import BadZipFile

from lightning_topo._figures.captures import CapturedDiagram, Crocker, Pairs, bars, by_blocks, crocker, spread
from lightning_topo._figures.coverage import stretches, uncovered
from lightning_topo._figures.rates import RateLimits, rate_limits
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.outputs.page._advice import advise
from lightning_topo.outputs.page._certificates import CertificateTable, certificate_table
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._next_rate import Advice
from lightning_topo.outputs.page._outcome import Outcome, history, series
from lightning_topo.outputs.page._silence import silence
from lightning_topo.outputs.page._slides import DiagramSlides, slides
from lightning_topo.outputs.page._thinning import StepTable, envelope, held, step_table
from lightning_topo.outputs.page._verdict import sentence
from lightning_topo.outputs.record import Parent, RunRecord
from lightning_topo.outputs.record._parameters import ParameterTable
from lightning_topo.outputs.record._thin import Thinned
from lightning_topo.phases import (
    EdgeSource,
    Phase,
    Replay,
    Severity,
    TopologyEvent,
    collapsed,
    replay_record,
    width_for,
)
from lightning_topo.quantities import Direction, direction

_CURVES = (*(source.quantity for source in EdgeSource), "eta_lambda")
"""What is drawn of the network beside the loss, whichever probe has measured it."""
_MOST_NUMBERS = 1 << 22
"""Of all captures together so many births and deaths are kept: of larger captures fewer are shown."""
_MOST_LOGGED = 8
"""Of the metrics of validation so many are drawn."""
_BAND = ("contraction", "expansion", "total_contraction", "total_expansion")
_FATE = (
    *("measured_neurons", "vanishing_neurons", "independent_neurons", "aligned_clusters", "largest_multiplicity"),
    *("merged_classes", "merged_neurons", *(f"multiplicity_{k}" for k in range(1, 9))),
)
_CHANGE = ("betti_0", "betti_1", "log_bottleneck_0", "log_bottleneck_1", "log_bottleneck_bound")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a run a page carries, so that it stays small: limits for each run and each group of it."""

    groups: int
    events: int
    curve_points: int
    ribbon_columns: int
    ratio_columns: int
    band_columns: int
    captures: int
    scales: int
    slide_numbers: int

    @classmethod
    def of(cls, n_groups: int, scale: float = 1.0) -> "Budget":
        """The limits for a page that shows so many groups, over all its runs; `scale` shrinks them all."""

        def share(total: int, least: int, most: int) -> int:
            return max(least, round(scale * min(most, total / max(1, n_groups))))

        return cls(
            groups=64,
            events=round(200 * scale),
            curve_points=round(2000 * scale),
            ribbon_columns=share(60_000, 100, 4000),
            ratio_columns=share(20_000, 30, 1000),
            band_columns=share(6_000, 20, 600),
            captures=share(3_200, 15, 160),
            scales=share(1_800, 16, 60),
            slide_numbers=share(110_000, 500, 20_000),
        )


@dataclass(frozen=True, slots=True)
class Ribbon:
    """The phase of each row (the network, then the groups) from `steps[i]` to `steps[i + 1]`, as codes."""

    steps: tuple[int, ...]
    codes: tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True, slots=True)
class GroupView:
    """What is shown of the chosen group: None where it was not measured."""

    band: StepTable | None
    change: StepTable | None
    fate: StepTable | None
    crocker: Crocker | None
    slides: DiagramSlides | None
    n_captures: int
    n_neurons: int | None
    n_distinct: int | None
    landmark_error: float | None
    is_vacuous: bool


@dataclass(frozen=True, slots=True)
class RunView:
    """One run as the page shows it: `details[i]`, column "i" of `ratio` and row i + 1 of `ribbon` show `groups[i]`."""

    label: str
    run_id: str
    verdict: str
    outcome: Outcome
    groups: tuple[str, ...]
    ribbon: Ribbon | None
    ratio: StepTable | None
    curves: Mapping[str, StepTable]
    events: tuple[TopologyEvent, ...]
    details: tuple[GroupView, ...]
    certificates: CertificateTable | None
    """None in a record without coverage lines."""
    n_measurements: int
    n_captures: int
    n_unreadable: int
    n_lost_captures: int
    thinned: Thinned | None
    n_abandoned: int = 0
    parent: Parent | None = None
    history_from: int | None = None
    """The first step of the parent's history, which is shown before the run's own steps but not counted."""
    parameters: ParameterTable | None = None
    advice: Advice | None = None
    rates: Mapping[str, StepTable] = field(default_factory=dict)
    """The learning rate used, and those at which a limit is met, by the names of `RateLimits`."""
    logged: Mapping[str, StepTable] = field(default_factory=dict)
    """What the training's own validation has logged."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What `run.json` says of the run."""
    silence: Mapping[str, str] = field(default_factory=dict)
    """Why a probe may have measured nothing, by its name."""


def run_view(record: RunRecord, label: str, budget: Budget, *, detailed: bool = True) -> RunView:
    """A record as its page shows it, thinned to the budget; where not `detailed` without what belongs to one group."""
    past = history(record)
    shown = (*_before(record), *record.measurements)
    covered = stretches(shown)
    groups = _shown_groups(record, budget.groups)
    by_group = _by_group(shown)
    thinned_until = 0 if record.thinned is None else record.thinned.until_step
    widths = {} if record.digest is None else record.digest.widths
    unit = max((widths.get(group, 1) for group in groups), default=1)
    nothing = {group: _Captures({}, []) for group in groups}
    captured, n_lost = _captures(record, groups, budget) if detailed else (nothing, 0)
    whole = by_group.get(GLOBAL, ())
    drawn = {"loss": series(whole, "training", "loss")} | {name: series(whole, None, name) for name in _CURVES}
    curves = {name: envelope(name, points, budget.curve_points) for name, points in drawn.items() if points}
    evidence = Evidence.of_record(record)
    return RunView(
        label=label,
        run_id=record.run_id,
        verdict=sentence(past.outcome),
        outcome=past.outcome,
        groups=groups,
        ribbon=_ribbon(uncovered(_phases(record, past.replay), covered), groups, budget.ribbon_columns),
        ratio=_ratio(by_group, groups, budget, thinned_until, unit),
        curves=curves,
        events=_loudest(past.events, budget.events),
        details=tuple(
            view if detailed else replace(view, band=None, change=None)
            for view in (
                _group_view(by_group.get(group, ()), captured[group], budget, widths.get(group, 1)) for group in groups
            )
        ),
        certificates=certificate_table(
            covered,
            {group: series(by_group.get(group, ()), "distortion", "critical_ratio") for group in groups},
            groups,
            budget.ratio_columns,
            thinned_until,
            unit,
        ),
        n_measurements=len(record.measurements) if record.digest is None else record.digest.n_measurements,
        n_captures=len(record.diagram_steps),
        n_unreadable=record.n_unreadable,
        n_lost_captures=n_lost,
        thinned=record.thinned,
        n_abandoned=record.n_abandoned,
        parent=record.parent,
        history_from=min((m.step for m in record.history), default=None),
        parameters=record.parameters,
        advice=advise(past.outcome, evidence),
        rates=_rates(rate_limits(record.measurements), past.outcome.last_step, budget),
        logged=_logged(record.measurements, budget),
        about=record.about,
        silence=silence(record.about, past.events, {m.probe for m in record.measurements}),
    )


def _rates(limits: RateLimits, last_step: int | None, budget: Budget) -> dict[str, StepTable]:
    """Each series thinned; the learning rate used goes on to the last step."""
    named = {f.name: getattr(limits, f.name) for f in fields(limits)}
    if limits.used and last_step is not None and last_step > limits.used[-1][0]:
        named["used"] = (*limits.used, (last_step, limits.used[-1][1]))
    return {name: envelope(name, points, budget.curve_points) for name, points in named.items() if points}


def _logged(measurements: Sequence[Measurement], budget: Budget) -> dict[str, StepTable]:
    own = [m for m in measurements if m.probe == "validation" and m.group == GLOBAL]
    names = list(dict.fromkeys(name for m in own for name in m.values))[:_MOST_LOGGED]
    return {name: envelope(name, series(own, "validation", name), budget.curve_points) for name in names}


def _before(record: RunRecord) -> Iterator[Measurement]:
    """The parent's history, up to where the run's own steps begin."""
    first = min((m.step for m in record.measurements), default=math.inf)
    return (m for m in record.history if m.step < first)


def _phases(record: RunRecord, seen: Replay) -> dict[str, list[tuple[int, Phase]]]:
    """The changes of phase of every group: first those of the parent's history, then the run's own."""
    changes = {group: list(found) for group, found in seen.phases.items()}
    if record.history:
        seen_before = record.digest.history_replay if record.digest is not None else None
        seen_before = seen_before or replay_record(tuple(_before(record)), record.history_events, complete=True)
        older = seen_before.phases
        for group, found in older.items():
            changes[group] = [*found, *changes.get(group, ())]
    return changes


def _by_group(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        found.setdefault(measurement.group, []).append(measurement)
    return found


def _shown_groups(record: RunRecord, limit: int) -> tuple[str, ...]:
    """All groups, or where there are too many those with the largest critical ratios, in the record's order."""
    groups = record.groups
    if len(groups) <= limit:
        return groups
    peaks = dict.fromkeys(groups, 0.0)
    for m in record.measurements:
        if m.group != GLOBAL:
            ratio = m.values.get("critical_ratio", 0.0)
            # NaN is never larger.
            peaks[m.group] = ratio if ratio > peaks[m.group] else peaks[m.group]
    kept = set(sorted(groups, key=lambda group: -peaks[group])[:limit])
    return tuple(group for group in groups if group in kept)


def _loudest(events: Sequence[TopologyEvent], limit: int) -> tuple[TopologyEvent, ...]:
    """All events, or where there are too many the most severe, in order; of the last kind that fits, evenly spread."""
    kept: list[int] = []
    for severity in (Severity.ERROR, Severity.WARN, Severity.INFO):
        of_kind = [i for i, event in enumerate(events) if event.severity is severity]
        kept += spread(of_kind, limit - len(kept)) if len(kept) < limit else ()
    return tuple(events[i] for i in sorted(kept))


def _ribbon(
    phases: Mapping[str, Sequence[tuple[int, Phase]]], groups: Sequence[str], max_columns: int
) -> Ribbon | None:
    rows = [phases.get(group, ()) for group in (GLOBAL, *groups)]
    steps = sorted({step for row in rows for step, _ in row})
    if len(steps) > max_columns:
        width = width_for(steps[0], steps[-1], max_columns // 2)
        rows = [collapsed(row, width) for row in rows]
        steps = sorted({step for row in rows for step, _ in row})
    if not steps:
        return None
    return Ribbon(tuple(steps), tuple(_codes(row, steps) for row in rows))


def _codes(changes: Sequence[tuple[int, Phase]], steps: Sequence[int]) -> tuple[int | None, ...]:
    at = dict(changes)
    codes: list[int | None] = []
    code = None
    for step in steps:
        code = int(at[step]) if step in at else code
        codes.append(code)
    return tuple(codes)


def _ratio(
    by_group: Mapping[str, Sequence[Measurement]], groups: Sequence[str], budget: Budget, thinned_until: int, unit: int
) -> StepTable | None:
    found = {str(i): series(by_group.get(group, ()), "distortion", "critical_ratio") for i, group in enumerate(groups)}
    if not any(found.values()):
        return None
    return held(step_table(found, lambda _: max, budget.ratio_columns, unit), thinned_until)


def _captures(record: RunRecord, groups: Sequence[str], budget: Budget) -> tuple[dict[str, "_Captures"], int]:
    """What was captured of each group, and how many captures could not be read."""
    found = {group: _Captures({}, []) for group in groups}
    n_lost = n_numbers = 0
    waiting = list(spread(record.diagram_steps, budget.captures))
    while waiting:
        step = waiting.pop(0)
        try:
            diagrams = record.captured(step)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            n_lost += 1
            continue
        read = {
            group: (bars([block.pairs for block in blocks]), blocks)
            for group, blocks in by_blocks(diagrams, groups).items()
        }
        size = sum(dimension.size for pairs, _ in read.values() for dimension in pairs)
        if size > _MOST_NUMBERS - n_numbers:
            n_lost += 1
            continue
        n_numbers += size
        for group, (pairs, blocks) in read.items():
            found[group].bars[step] = pairs
            found[group].latest[:] = blocks
        if size * len(waiting) > _MOST_NUMBERS - n_numbers:
            waiting = list(spread(waiting, max(1, (_MOST_NUMBERS - n_numbers) // size)))
    return found, n_lost


@dataclass(frozen=True, slots=True)
class _Captures:
    """The bars of a group by step, and the diagrams of its blocks as captured last."""

    bars: dict[int, tuple[Pairs, ...]]
    latest: list[CapturedDiagram]


def _group_view(measurements: Sequence[Measurement], captured: "_Captures", budget: Budget, unit: int) -> GroupView:
    captures, latest = captured.bars, captured.latest
    distinct = [
        int(value) for _, value in series(measurements, "distortion", "distinct_neurons") if 0.0 <= value < math.inf
    ]
    return GroupView(
        band=_table(measurements, "distortion", _BAND, budget, unit),
        change=_table(measurements, "persistence", _CHANGE, budget, unit),
        fate=_table(measurements, "fate", _FATE, budget, unit),
        crocker=crocker(captures, budget.scales),
        slides=_slides(captures, budget.slide_numbers),
        n_captures=max(len(captures), len(series(measurements, "persistence", "betti_0"))),
        n_neurons=sum(diagram.n_points for diagram in latest) or max(distinct, default=None),
        n_distinct=distinct[-1] if distinct else None,
        landmark_error=None if all(d.exact for d in latest) else max(d.landmark_error for d in latest),
        is_vacuous=any(d.is_vacuous(k) for d in latest for k in range(1, d.max_dim + 1)),
    )


def _slides(captures: Mapping[int, tuple[Pairs, ...]], most: int) -> DiagramSlides | None:
    """All bars; if those are too many, one of each pixel; if those still are, of fewer captures."""
    found = slides(captures)
    if found is not None and found.n_numbers > most:
        found = slides(captures, merge_pixels=True)
    if found is not None and found.n_numbers > most:
        kept = spread(tuple(captures), max(2, len(captures) * most // found.n_numbers))
        found = slides({step: captures[step] for step in kept}, merge_pixels=True)
    return found


def _table(
    measurements: Sequence[Measurement], probe: str, names: Sequence[str], budget: Budget, unit: int
) -> StepTable | None:
    found = {name: points for name in names if (points := series(measurements, probe, name))}
    if not found:
        return None
    return step_table(found, _extreme, budget.band_columns, unit)


def _extreme(name: str) -> Callable[[list[float]], float]:
    return min if direction(name) is Direction.LOW_IS_BAD else max


def page_json(runs: Sequence[RunView]) -> dict[str, Any]:
    """The data of the page's charts. Groups are told apart by their place, never by a key made of their name."""
    starts = (r.history_from if r.history_from is not None else r.outcome.first_step for r in runs)
    first = min((step for step in starts if step is not None), default=0)
    last = max((r.outcome.last_step for r in runs if r.outcome.last_step is not None), default=0)
    return {"schema": 1, "first_step": first, "last_step": last, "runs": runs}
