"""Trackio, on one's own machine: alerts, a table of events, images, the verdict in words, the record as an artifact."""

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

from lightning_topo.outputs.trackers._event_table import COLUMNS, cells, title
from lightning_topo.outputs.trackers._tracker import ARTIFACT_TYPE, RunFacts, Tracker, config_name, shortened
from lightning_topo.phases import Severity, TopologyEvent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TrackioTracker(Tracker):
    """A `TrackioLogger`.

    Trackio stores a table anew each time it is logged. It is therefore sent when its events have doubled, and at the
    end; each event is an alert as soon as it is noticed.
    """

    takes_conclusions = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._settings: tuple[str, dict[str, Any]] = ("topology", {})
        self._events: list[TopologyEvent] = []
        self._sent = 0

    @property
    def _run(self) -> Any:
        return self.logger.experiment  # pyright: ignore[reportAttributeAccessIssue]

    def began(self, run: RunFacts) -> None:
        self._settings = name, config = config_name(self._run.config, run), run.config()
        self.logger.log_hyperparams({name: config})

    def figure(self, key: str, figure: "Figure", step: int) -> None:
        import trackio

        from lightning_topo._figures.style import pixels

        self._run.log({shortened(key): trackio.Image(pixels(figure))}, step=step)

    def events(self, events: Sequence[TopologyEvent], step: int) -> None:
        import trackio

        levels = {
            Severity.INFO: trackio.AlertLevel.INFO,
            Severity.WARN: trackio.AlertLevel.WARN,
            Severity.ERROR: trackio.AlertLevel.ERROR,
        }
        self._events += events
        for event in events:
            with redirect_stdout(StringIO()):  # the terminal has a line for each event already
                text = f"Step {event.step}. {event.message} {event.remedy}"
                self._run.alert(title(event), text, levels[event.severity], step=step)

    def flush(self, step: int) -> None:
        if self._events and len(self._events) >= 2 * self._sent:
            self._send_table(step)

    def concluded(self, found: Mapping[str, str | float], step: int) -> None:
        import trackio

        outcome = {key.removeprefix("topology/"): value for key, value in found.items()}
        text = "\n\n".join(f"**{key}**: {value}" for key, value in outcome.items())
        self._run.log({"topology/verdict": trackio.Markdown(text)}, step=step)
        # Trackio has no summary: its comparer of runs shows where their configs differ.
        name, config = self._settings
        self.logger.log_hyperparams({name: config | {"outcome": outcome}})

    def closed(self, run: RunFacts, step: int) -> None:
        import trackio

        if len(self._events) > self._sent:
            self._send_table(step)
        if files := run.files():
            artifact = trackio.Artifact(f"{self._settings[0]}-{self._run.id}", type=ARTIFACT_TYPE)
            for path, place in files:
                artifact.add_file(str(path), name=str(place))
            self._run.log_artifact(artifact)

    def _send_table(self, step: int) -> None:
        import trackio

        table = trackio.Table(columns=list(COLUMNS), data=[list(cells(event)) for event in self._events])
        self._run.log({"topology/events": table}, step=step)
        self._sent = len(self._events)
