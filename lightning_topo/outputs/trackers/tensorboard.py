"""TensorBoard: figures, phases and events as text, and a page of custom scalars with the report's charts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_topo.outputs.trackers.tracker import RunFacts, Tracker
from lightning_topo.phases import Phase, TopologyEvent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By chart: the tags that it shows, as regular expressions.
_CHARTS: Mapping[str, Sequence[str]] = {
    "phase: 0 preserved, 1 unprotected, 2 edge, 3 breakdown": [r"^topology/phase$"],
    "critical ratio eta / eta*, critical at 1": [r"^topology/(.+/)?critical_ratio$"],
    "sharpness ratio and eta K, edge and bound at 1": [r"^topology/(sharpness_ratio|eta_lambda)$"],
    "contraction to expansion in a step": [r"^topology/.+/(contraction|expansion)$"],
    "contraction to expansion since the start": [r"^topology/.+/total_(contraction|expansion)$"],
    "Betti number b0": [r"^topology/.+/betti_0$"],
    "Betti number b1": [r"^topology/.+/betti_1$"],
    "change of the diagrams (log-bottleneck) and its bound": [r"^topology/.+/log_bottleneck_.*$"],
    "distinct neurons": [r"^topology/.+/distinct_neurons$"],
}
LAYOUT = {"topology": {title: ["Multiline", list(tags)] for title, tags in _CHARTS.items()}}
"""As `SummaryWriter.add_custom_scalars` takes it."""


class TensorBoardTracker(Tracker):
    """A `TensorBoardLogger`."""

    @property
    def _writer(self) -> Any:
        return self.logger.experiment  # pyright: ignore[reportAttributeAccessIssue]

    def began(self, run: RunFacts) -> None:
        self._writer.add_custom_scalars(LAYOUT)

    def figure(self, key: str, figure: "Figure", step: int) -> None:
        self._writer.add_figure(key, figure, step)

    def phase(self, phase: Phase, step: int) -> None:
        # TensorBoard smooths scalars, and a smoothed phase is none: the text tells it.
        self._writer.add_text("topology/phase", phase.name, step)

    def events(self, events: Sequence[TopologyEvent], step: int) -> None:
        for event in events:
            where = f" in `{event.group}`" if event.group else ""
            text = f"**{event.name}** at step {event.step}{where}. {event.message} *{event.remedy}*"
            self._writer.add_text(f"topology/events/{event.name}", text, step)

    def flush(self, step: int) -> None:
        self._writer.flush()

    def closed(self, run: RunFacts, step: int) -> None:
        self._writer.flush()
