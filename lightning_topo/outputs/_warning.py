"""Warnings to the person who trains."""

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
    """Warns for a guard without a monitor: of all that is more than a note, and of what it has not held."""

    name = "The warnings"

    def __init__(self, who: str) -> None:
        self._who = who

    def start(self, run: "Run") -> None:
        """Warnings need no run."""

    def measurement(self, measurement: Measurement) -> None:
        """Numbers are for others."""

    def event(self, event: TopologyEvent) -> None:
        """Warn, by the name of the guard."""
        if event.name is EventName.UNSEEN_STEP:  # the guard itself raises
            return
        if event.severity is not Severity.INFO or event.name is EventName.OUTSIDE_CHANGE:
            warn(f"{self._who}: {event.message} {event.remedy}".strip())

    def diagrams(self, step: int, diagrams: "Mapping[str, PersistenceDiagram]") -> None:
        """Diagrams are for others."""

    def end(self, *, in_haste: bool = False) -> None:
        """Everything was said as it came."""
