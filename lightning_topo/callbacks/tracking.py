"""What goes to the experiment trackers during one run, and when; a tracker that fails stops nothing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_topo.callbacks.clock import Clock
from lightning_topo.callbacks.drawing import Drawings
from lightning_topo.callbacks.publish import LogGroups, mangled_names
from lightning_topo.callbacks.trackers import RunFacts, Tracker, tracker_of
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import Measurement
from lightning_topo.neurons import NeuronGroup
from lightning_topo.phases import Phase, TopologyEvent
from lightning_topo.record import RecordWriter


class Tracking:
    """All trackers of one run, each call to each of them guarded.

    Values, phases and events go out as they come. Figures, and what else is costly, are sent with a row, as often as
    the fraction `share` of the wall time allows (None: with every row that has something new), and at the end.
    """

    def __init__(
        self, loggers: Sequence[Logger], groups: Sequence[str], log_groups: LogGroups, share: float | None
    ) -> None:
        self._trackers = [tracker_of(logger) for logger in loggers]
        self._drawings = Drawings(groups, log_groups)
        self._share = share
        self._clock, self._next_costly = Clock(), 0.0
        self._phase = Phase.UNKNOWN
        self._step = 0
        self._named: set[tuple[int, str]] = set()
        self._can_draw = True

    def began(self, run: RunFacts) -> None:
        """The run begins, or goes on after a resume."""
        self._run = run
        self._each("the settings", lambda tracker: tracker.began(run))

    def row(self, values: Mapping[str, float], step: int, known: Collection[str] = ()) -> None:
        """Send new values, measured at `step`; `known` are the keys that have a value yet, of all groups."""
        self._step = _row_of(step)
        self._each("values", lambda tracker: tracker.row(values, self._step, known))
        if self._clock.seconds() >= self._next_costly:
            self._costly()

    def measured(self, measurement: Measurement, phase: Phase) -> None:
        """Take in one measurement, and the phase that it has led to."""
        self._drawings.measured(measurement)
        if phase is not self._phase:
            self._phase = phase
            self._each("the phase", lambda tracker: tracker.phase(phase, _row_of(measurement.step)))

    def captured(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Take in the diagrams of one capture."""
        if self._trackers and diagrams:
            self._drawings.captured(step, diagrams)

    def happened(self, event: TopologyEvent) -> None:
        """Send one event."""
        self._each("an event", lambda tracker: tracker.events([event], _row_of(event.step)))

    def closed(self) -> None:
        """Send what has waited, and the record."""
        self._costly()
        self._each("the record", lambda tracker: tracker.closed(self._run, self._step))

    def _costly(self) -> None:
        began = self._clock.seconds()
        self._each("events", lambda tracker: tracker.flush(self._step))
        if self._trackers and self._can_draw and self._drawings.are_new:
            self._draw()
        now = self._clock.seconds()
        self._next_costly = now + (0.0 if self._share is None else (now - began) / self._share)

    def _draw(self) -> None:
        try:
            for key, figure in self._drawings.draw():
                self._each("figures", lambda tracker: tracker.figure(key, figure, self._step))  # noqa: B023 - called at once
        except ImportError as error:
            self._can_draw = False
            rank_zero_info(f"No figures go to the loggers: {error}.")

    def _each(self, what: str, send: Callable[[Tracker], Any]) -> None:
        """Send to every tracker; one that raises is named once for each kind of thing."""
        for i, tracker in enumerate(self._trackers):
            try:
                send(tracker)
            except Exception as error:
                if (i, what) not in self._named:
                    self._named.add((i, what))
                    rank_zero_warn(
                        f"{type(tracker.logger).__name__} did not take {what} ({type(error).__name__}: {error}). "
                        "Training and the topology record go on."
                    )


def _row_of(step: int) -> int:
    """Lightning's rows count from 0: the k-th step's values stand under k - 1."""
    return max(step - 1, 0)


def run_facts(record: RecordWriter | None, groups: Sequence[NeuronGroup], settings: dict[str, Any]) -> RunFacts:
    """What a tracker is told of a run when it begins: its folder, the monitor's settings, the table of groups."""
    keys = mangled_names(group.name for group in groups)
    rows = [
        {
            "name": group.name,
            "key": f"topology/{keys[group.name]}",
            "kind": group.kind,
            "neurons": group.n,
            "blocks": group.n_blocks,
            "status": group.status,
        }
        for group in groups
    ]
    if record is None:
        return RunFacts(None, None, settings, rows)
    return RunFacts(record.run_id, record.dirpath, settings, rows)
