"""Stop a training on topological events: rules, counts, and the decision."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from lightning_topo._keywords import explains_keywords
from lightning_topo.measurement import GLOBAL
from lightning_topo.outputs._feed import Findings
from lightning_topo.phases import EventName

ELSEWHERE = "Another process has met its condition to stop on topology."
"""The reason on a process that stops only because another does."""

# These are about the monitor, not about the network: they leave a quiet time quiet.
_OF_THE_MONITOR = (
    EventName.GAP,
    EventName.PROBE_FAILED,
    EventName.UNSEEN_STEP,
    EventName.UNWATCHED_PARAMETERS,
    EventName.REWIND,
)

_EDGE = ("sharpness", "step_edge", "critical_sharpness")
SEEN_BY: Mapping[EventName, tuple[str, ...]] = {
    EventName.TOPOLOGY_BREAKDOWN: ("distortion",),
    EventName.TOPOLOGY_RESTORED: ("distortion",),
    EventName.NEURONS_MERGED: ("distortion",),
    EventName.EQUIVARIANCE_BROKEN: ("distortion",),
    EventName.CURVATURE_BOUND_EXCEEDED: ("sharpness",),
    EventName.CURVATURE_BOUND_RESTORED: ("sharpness",),
    EventName.EDGE_OF_STABILITY_ENTER: _EDGE,
    EventName.EDGE_OF_STABILITY_EXIT: _EDGE,
    EventName.BETTI_CHANGED: ("persistence",),
    EventName.DIAGRAM_JUMP: ("persistence",),
    EventName.NEURONS_VANISHING: ("fate",),
    EventName.NEURONS_CONDENSING: ("fate",),
}
"""For each event the probes whose measurements can cause it, by name; other events need no probe."""

_OWN_PROBES = frozenset(name for names in SEEN_BY.values() for name in names)


def unseen_events(events: Iterable[EventName], probes: Set[str]) -> dict[EventName, tuple[str, ...]]:
    """Return the events that none of these probes can cause, each with the names of the probes that can.

    >>> unseen_events([EventName.INSTABILITY, EventName.BETTI_CHANGED], {"distortion"})
    {<EventName.BETTI_CHANGED: 'betti_changed'>: ('persistence',)}
    """
    return {event: SEEN_BY[event] for event in events if event in SEEN_BY and probes.isdisjoint(SEEN_BY[event])}


def why_never(rules: "StopRules", probes: Set[str]) -> str:
    """Return why one of the rules can never stop a training with these probes; empty if each can, or may.

    A probe of the user's own may measure anything.

    >>> why_never(StopRules.of("betti_changed"), {"distortion"})
    "stop_on='betti_changed' can never stop: no probe sees that event. Add the probe 'persistence'."
    """
    if rules.patience is not None and "persistence" not in probes:
        return (
            "patience=... counts captures of persistence diagrams, and there are none: add Persistence() to the probes."
        )
    if not probes <= _OWN_PROBES:
        return ""
    for event, could in unseen_events(rules.events, probes).items():
        chosen = " or ".join(map(repr, could))
        return f"stop_on={str(event)!r} can never stop: no probe sees that event. Add the probe {chosen}."
    return ""


def how_blind(rules: "StopRules", looks: Mapping[str, int]) -> str:
    """Return why a gate may have missed what it waits for: nobody looked more than once. Empty otherwise.

    `looks` counts the steps at which each probe has measured. Of breakdowns the coverage of steps tells more.

    >>> how_blind(StopRules.of("betti_changed"), {"persistence": 1})
    "nothing may be known of 'betti_changed': the probe 'persistence' measured once in this training."
    >>> how_blind(StopRules.of("betti_changed"), {"persistence": 2})
    ''
    """
    events = (event for event in rules.events if event in SEEN_BY and "distortion" not in SEEN_BY[event])
    wanted = {repr(str(event)): SEEN_BY[event] for event in events}
    if rules.patience is not None:
        wanted["patience"] = ("persistence",)
    for name, probes in wanted.items():
        if (n := max(looks.get(probe, 0) for probe in probes)) < 2:
            chosen = " or ".join(map(repr, probes))
            times = "once" if n else "never"
            return f"nothing may be known of {name}: the probe {chosen} measured {times} in this training."
    return ""


@explains_keywords
@dataclass(frozen=True, slots=True)
class StopRules:
    """The rules for stopping a training on its topology: after enough events, or after enough quiet captures.

    Args:
        events: The names of the events that count.
        min_count: How many of these events, counted together, stop the training.
        patience: How many quiet captures in a row stop the training; None: never. A capture is one measurement by the
            probe `Persistence`. It is quiet if the network had no event since the last capture, and every
            log-bottleneck distance to the last capture's diagrams is at most `tolerance`.
        groups: Names or patterns (as in `fnmatch`) of the groups whose events and captures count; None for all. Events
            of the whole network always count.
        tolerance: The largest log-bottleneck distance of a quiet capture.

    Raises `ValueError` if there are neither events nor a patience, or a number is out of its range.

    >>> StopRules(min_count=0)
    Traceback (most recent call last):
    ...
    ValueError: expected min_count >= 1, got 0
    """

    events: tuple[EventName, ...] = (EventName.TOPOLOGY_BREAKDOWN,)
    min_count: int = 1
    patience: int | None = None
    groups: tuple[str, ...] | None = None
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not self.events and self.patience is None:
            raise ValueError("expected events to stop on, or a patience, got neither")
        if self.min_count < 1:
            raise ValueError(f"expected min_count >= 1, got {self.min_count}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"expected patience >= 1 or None, got {self.patience}")
        if not self.tolerance >= 0.0:
            raise ValueError(f"expected tolerance >= 0, got {self.tolerance}")

    @classmethod
    def of(
        cls,
        stop_on: str | Iterable[str] | None,
        *,
        min_count: int = 1,
        patience: int | None = None,
        groups: str | Sequence[str] | None = None,
        tolerance: float = 0.05,
    ) -> "StopRules":
        """Make rules from names: `stop_on` is an event's name or several, `groups` a pattern or several.

        The other parameters are explained in `StopRules`. Raises `ValueError` for an unknown event, for neither events
        nor a patience, or for a number out of its range.

        >>> StopRules.of("gap").events
        (<EventName.GAP: 'gap'>,)
        """
        chosen = (groups,) if isinstance(groups, str) else None if groups is None else tuple(groups)
        return cls(_event_names(stop_on), min_count, patience, chosen, tolerance)

    def concerns(self, group: str) -> bool:
        """Whether the events and captures of a group count; `""`, the whole network, always does."""
        return self.groups is None or group == GLOBAL or any(fnmatchcase(group, pattern) for pattern in self.groups)

    def without_a_group(self, names: Iterable[str]) -> list[str]:
        """Return the patterns of `groups` that match none of these names: they are nearly always misspelt."""
        known = tuple(names)
        return [p for p in self.groups or () if not any(fnmatchcase(name, p) for name in known)]


@dataclass(frozen=True, slots=True)
class StopState:
    """What has been counted so far, up to and with the measurements of `step`."""

    step: int = -1
    counts: Mapping[str, int] = field(default_factory=dict)
    quiet_captures: int = 0
    eventful: bool = False
    latest: str = ""
    seen: frozenset[tuple[str, int, str]] = field(default=frozenset(), compare=False)
    """The events of the newest step: another monitor may find them too."""

    @property
    def n_events(self) -> int:
        """How many of the events in question there were."""
        return sum(self.counts.values())

    def values(self) -> dict[str, float]:
        """What the record holds of a gate that stops the training."""
        counts = {name: float(n) for name, n in self.counts.items()}
        return {"stopped": 1.0, "quiet_captures": float(self.quiet_captures)} | counts

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and containers, for a checkpoint."""
        plain = asdict(self) | {"counts": dict(self.counts)}
        del plain["seen"]
        return plain

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "StopState":
        """The inverse of `to_dict`.

        Raises `KeyError`, `TypeError`, `AttributeError`, `ValueError` or `OverflowError` where it is no such state.
        """
        return cls(
            int(state["step"]),
            {str(name): int(n) for name, n in state["counts"].items()},
            int(state["quiet_captures"]),
            bool(state["eventful"]),
            str(state["latest"]),
        )


def advance(state: StopState, findings: Findings, rules: StopRules) -> StopState:
    """Count the monitor's findings.

    A capture is quiet where no event has happened since the one before, and every log-bottleneck distance to it is
    at most the tolerance. Measurements of a step that was counted already (after a resume) are passed over, and so are
    events that another monitor has found before.

    >>> from lightning_topo.measurement import Measurement
    >>> still = Measurement(8, 0, "persistence", "net.0", {"log_bottleneck_0": 0.01})
    >>> advance(StopState(), Findings(8, 0, (still,)), StopRules(patience=2)).quiet_captures
    1
    """
    counts, eventful, latest, seen = dict(state.counts), state.eventful, state.latest, state.seen
    for event in findings.events:
        key = str(event.name), event.step, event.group
        if not rules.concerns(event.group) or key in seen:
            continue
        seen = frozenset({*(one for one in seen if one[1] >= event.step), key})
        eventful |= event.name not in _OF_THE_MONITOR
        if event.name in rules.events:
            counts[str(event.name)] = counts.get(str(event.name), 0) + 1
            latest = f"{event.name} at step {event.step}" + (f" in {event.group}" if event.group else "")
    state = replace(state, counts=counts, eventful=eventful, latest=latest, seen=seen)
    changes = _changes(findings, rules)
    for step in sorted(changes):
        if step > state.step:
            quiet = not state.eventful and all(change <= rules.tolerance for change in changes[step])
            state = replace(state, step=step, quiet_captures=state.quiet_captures + 1 if quiet else 0, eventful=False)
    return state


def reason_to_stop(state: StopState, rules: StopRules) -> str | None:
    """Why to stop now, in a sentence; None where there is no reason."""
    if state.n_events >= rules.min_count:
        times = f" ({state.n_events} of the events to stop on, min_count={rules.min_count})"
        return f"Training stops on topology: {state.latest}{times if state.n_events > 1 else ''}."
    if rules.patience is not None and state.quiet_captures >= rules.patience:
        return (
            f"Training stops on topology: nothing has happened in {state.quiet_captures} captures in a row, and no "
            f"log-bottleneck distance was above {rules.tolerance:g}."
        )
    return None


def _changes(findings: Findings, rules: StopRules) -> dict[int, list[float]]:
    """Every log-bottleneck distance to the capture before, by the step of its capture."""
    changes: dict[int, list[float]] = {}
    for measurement in findings.measurements:
        for name, value in measurement.values.items():
            is_change = name.startswith("log_bottleneck_") and name != "log_bottleneck_bound"
            if is_change and rules.concerns(measurement.group):
                changes.setdefault(measurement.step, []).append(value)
    return changes


def _event_names(stop_on: str | Iterable[str] | None) -> tuple[EventName, ...]:
    names = (stop_on,) if isinstance(stop_on, str) else tuple(stop_on or ())
    known = [str(name) for name in EventName]
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=2, cutoff=0.5)
            hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"expected stop_on among the events {', '.join(known)}, got {name!r}{hint}")
    return tuple(EventName(name) for name in names)
