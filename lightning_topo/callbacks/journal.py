"""Where measurements and events go: the record, the phase detector, the published values, trackers, the terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_topo.callbacks.lightning_internals import run_folder
from lightning_topo.callbacks.publish import Publisher
from lightning_topo.callbacks.saved import SavedSession
from lightning_topo.callbacks.settings import MonitorSettings
from lightning_topo.callbacks.terminal import Terminal
from lightning_topo.callbacks.tracking import Tracking, run_facts
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.neurons import NeuronGroup
from lightning_topo.phases import DetectorState, TopologyEvent, observe
from lightning_topo.record import RecordWriter

# Of the time the monitor may take, so much may go into figures and other costly things for the trackers.
_COSTLY_SHARE = 0.25


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

    def began(self, step: int, clouds: Iterable[tuple[str, Tensor]]) -> None:
        """Keep the clouds that the training began with, each with its group's name."""
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


def open_journal(
    trainer: Trainer, settings: MonitorSettings, groups: Sequence[NeuronGroup], saved: SavedSession | None
) -> Journal:
    """The journal of a run that begins, or goes on from the state `saved`; the record and the loggers are rank 0's."""
    names = [group.name for group in groups]
    loggers = trainer.loggers if trainer.is_global_zero else ()
    share = None if settings.max_overhead is None else settings.max_overhead * _COSTLY_SHARE
    journal = Journal(
        Publisher(names, settings.log_groups),
        _open_record(trainer, settings, saved) if trainer.is_global_zero else None,
        Tracking(loggers, names, settings.log_groups, share),
        Terminal(trainer, settings.verbose),
        DetectorState() if saved is None else saved.detector,
    )
    journal.tracking.began(run_facts(journal.record, groups, settings.described()))
    return journal


def _open_record(trainer: Trainer, settings: MonitorSettings, saved: SavedSession | None) -> RecordWriter | None:
    wanted = settings.dirpath or run_folder(trainer) / "topology"
    try:
        if saved is not None and saved.dirpath is not None and saved.run_id is not None:
            return RecordWriter.resume(saved.dirpath, saved.run_id, wanted, settings.max_record_bytes)
        return RecordWriter.create(wanted, settings.max_record_bytes)
    except OSError as error:
        if settings.on_error == "raise":
            raise
        rank_zero_warn(
            f"No topology record: {wanted} cannot be written ({error}). Training and measuring go on, and values "
            "still go to the loggers. Remove what stands there, or give TopologyMonitor another dirpath."
        )
        return None
