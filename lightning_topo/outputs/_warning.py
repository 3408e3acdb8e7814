"""Warn the user."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_topo.measurement import Measurement
from lightning_topo.phases import EventName, Severity, TopologyEvent

if TYPE_CHECKING:
    from lightning_topo._watch.output import Run
    from lightning_topo.homology import PersistenceDiagram


def warn(message: str) -> None:
    """Issue a `UserWarning`. Only the first of several processes has outputs, so each comes once."""
    warnings.warn(message, UserWarning, stacklevel=3)


class WarningOutput:
    """Warns of events for a guard that works without a monitor: of severe ones, and of outside changes."""

    name = "The warnings"

    def __init__(self, who: str) -> None:
        self._who = who

    def start(self, run: "Run") -> None:
        """Do nothing: warnings need no facts about the run."""

    def measurement(self, measurement: Measurement) -> None:
        """Do nothing: a measurement alone is no reason to warn."""

    def event(self, event: TopologyEvent) -> None:
        """Warn of an event from `WARN` up and of an outside change; begin with the guard's name."""
        if event.name is EventName.UNSEEN_STEP:  # the guard itself raises
            return
        if event.severity is not Severity.INFO or event.name is EventName.OUTSIDE_CHANGE:
            warn(f"{self._who}: {event.message} {event.remedy}".strip())

    def diagrams(self, step: int, diagrams: "Mapping[str, PersistenceDiagram]") -> None:
        """Do nothing: a diagram is no reason to warn."""

    def end(self, *, in_haste: bool = False) -> None:
        """Do nothing: each warning was issued as its event came."""
