"""One experiment tracker as an output: what goes to it, and when."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning_topo._clock import Clock
from lightning_topo._watch.output import Run
from lightning_topo._watch.published_values import Readings
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import Measurement
from lightning_topo.outputs._leaving import plain
from lightning_topo.outputs._machine import impersonal_event
from lightning_topo.outputs._warning import warn
from lightning_topo.outputs.record import Branch
from lightning_topo.outputs.trackers._by_type import tracker_of
from lightning_topo.outputs.trackers._conclusion import concluded
from lightning_topo.outputs.trackers._drawing import Drawings
from lightning_topo.outputs.trackers._tracker import RunFacts
from lightning_topo.phases import Phase, TopologyEvent

FIRST_SECONDS = 0.1
"""What the first figures are taken to cost: a training of a few seconds has them at its end alone."""


class TrackerOutput:
    """One of Lightning's loggers; each kind of thing that it does not take is named once.

    Values, phases and events go out as they come. Figures, and what else is costly, are sent with a row, as often as
    the fraction `share` of the wall time allows (None: with every row that has something new), and at the end.
    """

    def __init__(self, logger: Any, branch: Branch | None = None, share: float | None = None) -> None:
        self.name: str = type(logger).__name__
        self._tracker = tracker_of(logger)
        self._branch, self._share = branch, share
        self._clock, self._next_costly = Clock(), 0.0 if share is None else FIRST_SECONDS / share
        self._run: RunFacts | None = None
        self._readings = Readings(())
        self._drawings: Drawings | None = None
        self._phase: Phase | None = None
        self._step = 0
        self._named: set[str] = set()
        self._can_draw = True

    def start(self, run: Run) -> None:
        """Send the settings and the table of groups."""
        self._readings = run.readings
        self._drawings = Drawings([group.name for group in run.groups], run.readings.log_groups)
        self._run = facts = run_facts(self._branch, run)
        self._send("the settings", lambda: self._tracker.began(facts))

    def measurement(self, measurement: Measurement) -> None:
        """Send a row or a phase; only the figures use other measurements."""
        match measurement.probe:
            case "row":
                self._row(measurement)
            case "phase":
                if "phase" in measurement.values:
                    self._enter(Phase(int(measurement.values["phase"])), measurement.step)
            case _ if self._drawings is not None:
                self._drawings.measured(measurement)

    def event(self, event: TopologyEvent) -> None:
        """Send one event."""
        told = impersonal_event(event)
        self._send("an event", lambda: self._tracker.events([told], row_of(event.step)))

    def diagrams(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Take in the diagrams of one capture."""
        if self._drawings is not None:
            self._drawings.captured(step, diagrams)

    def end(self, *, in_haste: bool = False) -> None:
        """Send waiting values and the record; skip both if `in_haste`, as they take time."""
        run = self._run
        if in_haste or run is None:
            return
        self._costly()
        if self._tracker.takes_conclusions:
            self._send("the verdict", lambda: self._tracker.concluded(concluded(run.dirpath), self._step))
        self._send("the record", lambda: self._tracker.closed(run, self._step))

    def _row(self, measurement: Measurement) -> None:
        self._step = row_of(measurement.step)
        values, known = measurement.values, self._readings.keys
        self._send("values", lambda: self._tracker.row(values, self._step, known))
        if self._clock.seconds() >= self._next_costly:
            self._costly()

    def _enter(self, phase: Phase, step: int) -> None:
        if phase is not self._phase:
            self._phase = phase
            self._send("the phase", lambda: self._tracker.phase(phase, row_of(step)))

    def _costly(self) -> None:
        began = self._clock.seconds()
        self._send("events", lambda: self._tracker.flush(self._step))
        if self._can_draw and self._drawings is not None and self._drawings.are_new:
            self._draw(self._drawings)
        now = self._clock.seconds()
        self._next_costly = now + (0.0 if self._share is None else (now - began) / self._share)

    def _draw(self, drawings: Drawings) -> None:
        try:
            for key, figure in drawings.draw():
                self._send("figures", lambda: self._tracker.figure(key, figure, self._step))  # noqa: B023 - at once
        except ImportError as error:
            self._can_draw = False
            warn(f"No figures go to {self.name}: {error}.")

    def _send(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            if what not in self._named:
                self._named.add(what)
                warn(
                    f"{self.name} did not take {what} ({type(error).__name__}: {error}). Training and the topology "
                    "record go on."
                )


def row_of(step: int) -> int:
    """The step of a logger's row: Lightning's count from 0, so the k-th step's values stand under k - 1."""
    return max(step - 1, 0)


def run_facts(branch: Branch | None, run: Run) -> RunFacts:
    """The facts that a tracker gets when a run begins: its record, the monitor's settings, the table of groups."""
    keys = run.readings.names
    groups = [
        {
            "name": group.name,
            "key": f"topology/{keys[group.name]}",
            "kind": group.kind,
            "neurons": group.n,
            "blocks": group.n_blocks,
            "status": group.status,
        }
        for group in run.groups
    ]
    settings = plain(run.settings) | ({"training": plain(run.facts)} if run.facts else {})
    if branch is None:
        return RunFacts(None, None, settings, groups)
    return RunFacts(branch.run_id, branch.dirpath, settings, groups, branch.parent)
