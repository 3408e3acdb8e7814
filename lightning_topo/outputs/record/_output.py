"""The record as an output: a disk that is full or gone does not stop the training, and lost lines are counted."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo.measurement import Measurement
from lightning_topo.outputs._machine import impersonal, impersonal_event
from lightning_topo.outputs._warning import warn
from lightning_topo.outputs.record._limits import LONGEST_NAME, readable, unreadable
from lightning_topo.outputs.record._write import RecordWriter
from lightning_topo.phases import EventName, Severity, TopologyEvent

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_topo._watch.output import Run
    from lightning_topo.homology import PersistenceDiagram
    from lightning_topo.neurons import NeuronGroup

NOT_RECORDED = frozenset({"row", "phase"})
"""The probes that repeat what others have measured; the record leaves them out."""


class RecordOutput:
    """Writes a run's measurements, events and diagrams into its folder; if that fails, training goes on.

    Lines that cannot be written are kept in memory and tried again with the next line.

    Args:
        writer: The open record.
        notice: Is called with a `gap` event when writing begins to fail, when lines are lost, when a line is refused
            because the folder would exceed `max_bytes`, and when other files take up so much of `max_bytes` that
            measurements no longer fit.
    """

    name = "The topology record"

    def __init__(self, writer: RecordWriter, notice: Callable[[TopologyEvent], None] = lambda event: None) -> None:
        self.writer: RecordWriter = writer
        self._notice = notice
        self._failing: set[str] = set()
        self._has_reported_loss = self._has_reported_crowd = self._is_closed = False
        self._has_begun = writer.branch.resumed or writer.branch.parent is not None
        self._n_lost_captures = self._n_refused = 0
        self._refused: set[str] = set()
        self._at = (0, 0)

    @property
    def is_discarded(self) -> bool:
        """Whether the run ended before its first step, so that its record was removed."""
        return self._is_closed and not self._has_begun

    def start(self, run: "Run") -> None:
        """Note that the run has made its first step: from now on its record is kept."""
        self._has_begun = True

    def measurement(self, measurement: Measurement) -> None:
        """Append a measurement, except of the probes "row" and "phase", which repeat what others have measured.

        A measurement with more than 1000 values, or a name of more than 1000 characters, would be refused by readers:
        it is counted as lost and reported.
        """
        if measurement.probe not in NOT_RECORDED:
            self._at = measurement.step, measurement.epoch
            if refusal := unreadable(measurement.probe, measurement.group, measurement.values.keys()):
                self._refuse(measurement, refusal)
                return
            self._write(self.writer.measurement, measurement)
            if self.writer.crowded_by and not self._has_reported_crowd:
                self._has_reported_crowd = True
                self._tell(
                    f"{self.writer.crowded_by / 2**20:,.1f} MB of the run folder are not measurements (the neurons of "
                    "the beginning, events, pages, figures): they leave too little of max_record_mb",
                    "Measurements are thinned more than usual, or the folder exceeds the limit: choose a larger "
                    "max_record_mb.",
                )

    def event(self, event: TopologyEvent) -> None:
        """Append an event, with paths and the names of user and host removed from its texts.

        The text of an error may contain them, and the file may be uploaded to a tracker.
        """
        self._write(self.writer.event, readable(impersonal_event(event)))

    def diagrams(self, step: int, diagrams: "Mapping[str, PersistenceDiagram]") -> None:
        """Write the diagrams captured at `step`, by group; if they cannot be written, they are counted as lost."""
        if not self._write(self.writer.diagrams, step, diagrams):
            self._n_lost_captures += 1

    def reference(self, step: int, clouds: "Iterable[tuple[str, Tensor]]") -> bool:
        """Write the clouds from which `total_contraction` and `total_expansion` are measured.

        `clouds` yields pairs (name of a group, its cloud after `step` optimizer steps). Returns whether the file could
        be written.
        """
        return self._write(self.writer.reference, step, clouds)

    def parameters(self, groups: "Sequence[NeuronGroup]", coverage: Sequence[ParameterCoverage]) -> None:
        """Write for every parameter the names of its groups, or the reason why it is in none."""
        own_groups = [replace(group, reason=impersonal(group.reason)) for group in groups]
        own_coverage = [replace(one, reason=impersonal(one.reason)) for one in coverage]
        self._write(self.writer.parameters, own_groups, own_coverage)

    def read_reference(self, group: str) -> "Tensor | None":
        """Return the cloud of a group that `self.reference` wrote, in this session or an earlier one.

        Returns None if there is none or it cannot be read.
        """
        return self.writer.read_reference(group)

    def totals_from(self, step: int, groups: "Iterable[str]") -> None:
        """Say that the totals of these groups count from `step`: something of their neurons has changed there."""
        self.writer.totals_from(step, groups)

    def end(self, *, in_haste: bool = False) -> None:
        """Close the files, and warn if lines or diagrams were lost; delete the record of a run without a step."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._has_begun:
                self.writer.close()
            else:
                self.writer.discard()
        except OSError as error:
            reason = f" ({error})"
        else:
            reason = ""
        n_lines = self.writer.n_lost + self.writer.n_waiting + self._n_refused
        if n_lines or self._n_lost_captures:
            warn(
                f"The topology record in {self.writer.dirpath} lacks {n_lines:,} lines and {self._n_lost_captures:,} "
                f"captured diagrams that could not be written or were deleted{reason}."
            )

    def _write(self, action: Callable[..., None], *args: Any) -> bool:
        """Write; say once where it begins to fail, and where lines are lost. Whether it was written."""
        self._has_begun = True
        try:
            action(*args)
        except OSError as error:
            is_new = not self._failing
            self._failing.add(action.__name__)
            if is_new:
                self._tell(
                    f"The topology record cannot be written ({error})",
                    "Training goes on; lines are kept in memory and written when there is room again. Free space on "
                    "the disk, or choose another dirpath.",
                )
            return False
        finally:
            self._tell_loss()
        self._failing.discard(action.__name__)
        return True

    def _refuse(self, measurement: Measurement, why: str) -> None:
        """Count a measurement that no reader would take; say so once for each probe."""
        self._n_refused += 1
        if measurement.probe not in self._refused:
            self._refused.add(measurement.probe)
            self._tell(
                f"Measurements of {measurement.probe[:LONGEST_NAME]} are not recorded: {why}",
                "Training and the loggers go on. Let the probe return fewer values, with shorter names.",
            )

    def _tell_loss(self) -> None:
        n_lost = self.writer.n_lost
        if n_lost and not self._has_reported_loss:
            self._has_reported_loss = True
            self._tell(
                f"{n_lost:,} lines of the topology record are lost, because its folder was deleted or its disk is full",
                "The record goes on from here. The total is reported when the run ends.",
                n_lost,
            )

    def _tell(self, message: str, remedy: str, value: float | None = None) -> None:
        warn(f"{message}. {remedy}")
        event = TopologyEvent(
            EventName.GAP, *self._at, severity=Severity.WARN, value=value, message=message, remedy=remedy
        )
        self._notice(event)
