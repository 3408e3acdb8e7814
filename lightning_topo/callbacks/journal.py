"""Where measurements and events go: the record, the phase detector, the published values, trackers, the terminal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_topo.callbacks.publish import Publisher
from lightning_topo.callbacks.terminal import Terminal
from lightning_topo.callbacks.tracking import Tracking
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import DetectorState, TopologyEvent, observe
from lightning_topo.record import RecordWriter


@dataclass(slots=True)
class Journal:
    """Follows one run. Without a `record` (other ranks, a folder that cannot be written) all else goes on."""

    publisher: Publisher
    record: RecordWriter | None
    tracking: Tracking
    terminal: Terminal
    detector: DetectorState = field(default_factory=DetectorState)
    events: list[TopologyEvent] = field(default_factory=list)
    _write_fails: bool = field(init=False, default=False)

    def measured(self, measurement: Measurement) -> None:
        """Take in one measurement, and the events that follow from it, and publish its values."""
        self.noted(measurement)
        self.publisher.take(measurement.group, measurement.values)
        self.publisher.take(GLOBAL, {"phase": float(self.detector.phase)})
        self.tracking.measured(measurement, self.detector.phase)

    def noted(self, measurement: Measurement) -> None:
        """Take in a measurement of the training or of the monitor itself, which is not published."""
        if self.record is not None:
            self._write(self.record.measurement, measurement)
        self.detector, events = observe(self.detector, measurement)
        for event in events:
            self.happened(event)

    def happened(self, event: TopologyEvent) -> None:
        """Take in one event."""
        self.events.append(event)
        if self.record is not None:
            self._write(self.record.event, event)
        self.tracking.happened(event)
        self.terminal.event(event)

    def captured(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Keep the diagrams of one capture."""
        if self.record is not None and diagrams:
            self._write(self.record.diagrams, step, diagrams)
        self.tracking.captured(step, diagrams)

    def began(self, step: int, clouds: Mapping[str, Tensor]) -> None:
        """Keep the clouds that the training began with."""
        if self.record is not None:
            self._write(self.record.reference, step, clouds)

    def close(self) -> None:
        """Close the record."""
        if self.record is not None:
            self._write(self.record.close)

    def _write(self, action: Callable[..., None], *args: Any) -> None:
        """Write, or say once that it fails; lines are kept and tried again with the next."""
        try:
            action(*args)
            self._write_fails = False
        except OSError as error:
            if not self._write_fails:
                rank_zero_warn(
                    f"The topology record cannot be written ({error}). Training goes on; lines are kept in memory and "
                    "written when there is room again. Free space on the disk, or choose another dirpath."
                )
            self._write_fails = True
