"""Warnings to the person who trains."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_topo.measurement import Measurement
from lightning_topo.phases import NOTES, EventName, TopologyEvent

if TYPE_CHECKING:
    from lightning_topo._watch.output import Run
    from lightning_topo.homology import PersistenceDiagram


def warn(message: str) -> None:
    """Issue a `UserWarning`. Only the first of several processes has outputs, so each comes once."""
    warnings.warn(message, UserWarning, stacklevel=3)


class WarningOutput:
    """Warns of events, for a guard without a monitor; but not of notes, nor of what the guard itself raises."""

    name = "The warnings"

    def __init__(self, who: str) -> None:
        self._who = who

    def start(self, run: "Run") -> None:
        """Warnings need no run."""

    def measurement(self, measurement: Measurement) -> None:
        """Numbers are for others."""

    def event(self, event: TopologyEvent) -> None:
        """Warn, by the name of the guard."""
        if event.name not in NOTES and event.name is not EventName.UNSEEN_STEP:
            warn(f"{self._who}: {event.message} {event.remedy}".strip())

    def diagrams(self, step: int, diagrams: "Mapping[str, PersistenceDiagram]") -> None:
        """Diagrams are for others."""

    def end(self, *, in_haste: bool = False) -> None:
        """Everything was said as it came."""
