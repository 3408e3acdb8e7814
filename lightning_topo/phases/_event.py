"""Events: what happened at which step, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum

from lightning_topo.measurement import GLOBAL


class Severity(StrEnum):
    """How severe an event is: `INFO`, `WARN` or `ERROR`; trackers alert from `WARN` up."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class EventName(StrEnum):
    """The names of all events; docs/events.md says what each means, how it is detected and what to do."""

    CURVATURE_BOUND_EXCEEDED = "curvature_bound_exceeded"
    CURVATURE_BOUND_RESTORED = "curvature_bound_restored"
    EDGE_OF_STABILITY_ENTER = "edge_of_stability_enter"
    EDGE_OF_STABILITY_EXIT = "edge_of_stability_exit"
    TOPOLOGY_BREAKDOWN = "topology_breakdown"
    TOPOLOGY_RESTORED = "topology_restored"
    INSTABILITY = "instability"
    NEURONS_MERGED = "neurons_merged"
    BETTI_CHANGED = "betti_changed"
    DIAGRAM_JUMP = "diagram_jump"
    EQUIVARIANCE_BROKEN = "equivariance_broken"
    NEURONS_VANISHING = "neurons_vanishing"
    NEURONS_CONDENSING = "neurons_condensing"
    UNSEEN_STEP = "unseen_step"
    OUTSIDE_CHANGE = "outside_change"
    UNWATCHED_PARAMETERS = "unwatched_parameters"
    REWIND = "rewind"
    GAP = "gap"
    PROBE_FAILED = "probe_failed"


DETECTED = frozenset(EventName) - {
    EventName.UNSEEN_STEP,
    EventName.OUTSIDE_CHANGE,
    EventName.UNWATCHED_PARAMETERS,
    EventName.REWIND,
    EventName.GAP,
    EventName.PROBE_FAILED,
}
"""The events that follow from measurements alone, so that `replay` finds them again in a record."""
NOTES = frozenset({EventName.UNWATCHED_PARAMETERS})
"""The events that only describe how a run is watched; they need no action."""


@dataclass(frozen=True, slots=True)
class TopologyEvent:
    """One thing that happened at one step, in one group of neurons or (`group=""`) in the whole network.

    `step` counts the optimizer steps done, `epoch` the epochs. `value` is the measured number that caused the event and
    `threshold` the limit that it crossed; each is None if there is none. `message` describes the event, `remedy` what
    the user can do about it.

    >>> event = TopologyEvent(EventName.GAP, step=3, epoch=0, message="resumed")
    >>> event.name == "gap", event.severity
    (True, <Severity.INFO: 'info'>)
    """

    name: EventName
    step: int
    epoch: int
    group: str = GLOBAL
    severity: Severity = Severity.INFO
    value: float | None = None
    threshold: float | None = None
    message: str = ""
    remedy: str = ""
