"""All outputs of a run as one: they receive its measurements and events."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_topo._watch.output import Output, Run
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import Measurement
from lightning_topo.outputs._about import AboutOutput
from lightning_topo.outputs._feed import FeedOutput, Findings
from lightning_topo.outputs._terminal import LoggingPrinter, Printer, TerminalOutput
from lightning_topo.outputs._warning import warn
from lightning_topo.outputs.page import PageOutput
from lightning_topo.outputs.record import RecordOutput, RecordWriter
from lightning_topo.outputs.trackers import TrackerOutput
from lightning_topo.phases import TopologyEvent

_COSTLY_SHARE = 0.25
"""The share of the monitor's time for figures and other costly things for the trackers."""


@dataclass(slots=True)
class Outputs:
    """All outputs of one run as one: passes each measurement, event and diagram on to every output.

    An output that fails is named in a warning, once for each of the five verbs, and the others go on. `take` returns
    the findings for other callbacks. `noticed` holds the events that the outputs themselves have caused (a rewind, lost
    lines); every output has received them.
    """

    outputs: Sequence[Output] = ()
    record: RecordOutput | None = None
    noticed: list[TopologyEvent] = field(default_factory=list)
    _feed: FeedOutput = field(default_factory=FeedOutput, repr=False)
    _has_started: bool = field(init=False, default=False, repr=False)
    _is_over: bool = field(init=False, default=False, repr=False)
    _unsent: list[TopologyEvent] = field(init=False, default_factory=list, repr=False)
    _named: set[tuple[int, str]] = field(init=False, default_factory=set, repr=False)

    @property
    def dirpath(self) -> Path | None:
        """The run folder; None where there is no record, or where the run ended before its first step."""
        return None if self.record is None or self.record.is_discarded else self.record.writer.dirpath

    @property
    def run_id(self) -> str | None:
        """The id of the run in its record; None if there is no record."""
        return None if self.record is None else self.record.writer.run_id

    @property
    def store(self) -> RecordOutput | None:
        """The record, which keeps the clouds of the beginning; None if there is none."""
        return self.record

    @property
    def has_parent(self) -> bool:
        """Whether this run began from another run's checkpoint, and may have a copy of that run's reference clouds."""
        return self.record is not None and self.record.writer.branch.parent is not None

    def start(self, run: Run) -> None:
        """Start every output, when the run begins or resumes; warn of `log_groups` patterns without a group."""
        self._has_started = True
        for pattern in run.readings.unmatched:
            names = ", ".join(run.readings.groups[:8]) or "none"
            warn(f"log_groups: {pattern!r} matches no group. The groups are: {names}.")
        self._each("the start of the run", lambda output: output.start(run))
        unsent, self._unsent = self._unsent, []
        for event in unsent:
            self._send_notice(event)

    def measurement(self, measurement: Measurement) -> None:
        """Pass a measurement on to every output."""
        self._each("measurements", lambda output: output.measurement(measurement))

    def event(self, event: TopologyEvent) -> None:
        """Pass an event on to every output."""
        self._each("events", lambda output: output.event(event))

    def diagrams(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Pass the diagrams of one capture on to every output, if there are any."""
        if diagrams:
            self._each("diagrams", lambda output: output.diagrams(step, diagrams))

    def end(self, *, in_haste: bool = False) -> None:
        """Close every output; later calls do nothing."""
        if self._is_over:
            return
        self._is_over = True
        self._each("the end of the run", lambda output: output.end(in_haste=in_haste))

    def take(self) -> Findings | None:
        """Return the findings since the last call, for other callbacks; None if there are none."""
        return self._feed.take()

    def notice(self, event: TopologyEvent, *, is_recorded: bool = False) -> None:
        """Pass on an event that an output has caused; before `start` it waits until then."""
        self.noticed.append(event)
        if not is_recorded and self.record is not None:
            self.record.event(event)
        if self._has_started:
            self._send_notice(event)
        else:
            self._unsent.append(event)

    def _send_notice(self, event: TopologyEvent) -> None:
        # Not to the feed: other processes have no such event, and gates decide together.
        mine = (self.record, self._feed)
        self._each("events", lambda output: None if output in mine else output.event(event))

    def _each(self, what: str, send: Callable[[Output], Any]) -> None:
        for i, output in enumerate((*self.outputs, self._feed)):
            try:
                send(output)
            except Exception as error:
                if (i, what) not in self._named:
                    self._named.add((i, what))
                    warn(
                        f"{getattr(output, 'name', type(output).__name__)} did not take {what} "
                        f"({type(error).__name__}: {error}). Training goes on."
                    )


def open_outputs(
    folder: str | Path,
    *,
    loggers: Sequence[Any] = (),
    is_first_rank: bool = True,
    resume: tuple[str | Path | None, str | None] | None = None,
    step: int = 0,
    epoch: int = 0,
    printer: Printer | None = None,
    verbose: bool = True,
    report: bool = True,
    max_overhead: float | None = None,
    max_record_bytes: float = float("inf"),
    on_error: str = "warn",
) -> Outputs:
    """Open the outputs of a run, and claim its folder; on other ranks than the first there are none.

    Args:
        folder: The folder for the record; if another run's record is in it, `folder-v1`, `-v2`, ... is used.
        loggers: Lightning's loggers.
        is_first_rank: Whether this process writes the record, the page, the trackers and the terminal.
        resume: The run folder and run id in the checkpoint from which this fit begins; None without a checkpoint.
        step: The number of optimizer steps done before the fit begins; with `epoch`, that of the checkpoint.
        printer: Shows lines and progress; by default Python's logging.
        verbose: Whether to show lines and progress.
        report: Whether to write the page.
        max_overhead: The monitor's share of the wall time, of which a part may go into figures; None for no limit.
        max_record_bytes: The size above which the record is thinned.
        on_error: "raise" if a folder that cannot be written is an error; by default it is a warning.

    Raises `OSError` if the folder cannot be written and `on_error` is "raise".
    """
    outputs = Outputs()
    if not is_first_rank:
        return outputs
    outputs.record = _open_record(outputs, Path(folder), resume, (step, epoch), max_record_bytes, on_error)
    share = None if max_overhead is None else max_overhead * _COSTLY_SHARE / max(len(loggers), 1)
    found: list[Output] = []
    if outputs.record is not None:
        found.append(outputs.record)
        # Before the page, which shows it.
        found.append(AboutOutput(outputs.record.writer.dirpath, outputs.record.writer.run_id))
        if report:
            found.append(PageOutput(outputs.record.writer.dirpath))
    branch = None if outputs.record is None else outputs.record.writer.branch
    found += [TrackerOutput(logger, branch, share) for logger in loggers]
    if verbose:
        found.append(TerminalOutput(printer or LoggingPrinter(), outputs.dirpath, has_page=report))
    outputs.outputs = tuple(found)
    return outputs


def _open_record(
    outputs: Outputs,
    folder: Path,
    resume: tuple[str | Path | None, str | None] | None,
    at: tuple[int, int],
    max_bytes: float,
    on_error: str,
) -> RecordOutput | None:
    try:
        writer = RecordWriter.open(folder, resume=resume, step=at[0], max_bytes=max_bytes)
        event = writer.rewind(*at) if writer.branch.resumed else None
    except OSError as error:
        if on_error == "raise":
            raise
        warn(
            f"No topology record: {folder} cannot be written ({error}). Training and measuring go on, and values "
            "still go to the loggers. Remove what stands there, or give TopologyMonitor another dirpath."
        )
        return None
    for note in writer.branch.notes:
        warn(f"{note} The record of this run is in {writer.dirpath}.")
    if event is not None:
        outputs.notice(event, is_recorded=True)
    return RecordOutput(writer, outputs.notice)
