"""TensorBoard: figures, phases and events as text, and a page of custom scalars with the report's charts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_topo._watch.published_values import mangled_names
from lightning_topo.outputs.trackers._tracker import RunFacts, Tracker
from lightning_topo.phases import EdgeSource, Phase, TopologyEvent
from lightning_topo.quantities import Scope, quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHARTS: Mapping[str, Sequence[str]] = {
    "phase: 0 preserved, 1 unprotected, 2 edge, 3 breakdown": ["phase"],
    "critical ratio eta / eta*, critical at 1, and its bound": ["critical_ratio", "critical_ratio_bound"],
    "learning rate and critical learning rate eta*": ["learning_rate", "critical_learning_rate"],
    "coverage: shares of steps certified, and spanned": ["coverage", "coverage_span"],
    "edge ratios, edge of stability at 1": [source.quantity for source in EdgeSource],
    "eta K, the paper's condition needs < 1": ["eta_lambda"],
    "contraction to expansion in a step": ["contraction", "expansion"],
    "contraction to expansion since the start": ["total_contraction", "total_expansion"],
    "Betti number b0": ["betti_0"],
    "Betti number b1": ["betti_1"],
    "change of the diagrams (log-bottleneck) and its bound": [
        "log_bottleneck_0",
        "log_bottleneck_1",
        "log_bottleneck_bound",
    ],
    "distinct neurons": ["distinct_neurons"],
    "independent neurons": ["independent_neurons"],
    "vanishing neurons": ["vanishing_neurons"],
    "aligned clusters": ["aligned_clusters"],
}


def tag_pattern(name: str) -> str:
    """The tags of a quantity, of whichever groups it is measured, as a regular expression.

    >>> tag_pattern("sharpness"), tag_pattern("critical_ratio"), tag_pattern("betti_0")
    ('^topology/sharpness$', '^topology/(.+/)?critical_ratio$', '^topology/.+/betti_0$')
    """
    row = quantity(name)
    place = {Scope.NETWORK: "", Scope.BOTH: "(.+/)?", Scope.GROUP: ".+/"}
    return f"^topology/{'' if row is None else place[row.scope]}{name}$"


LAYOUT: dict[str, dict[str, list[Any]]] = {
    "topology": {title: ["Multiline", [tag_pattern(name) for name in names]] for title, names in _CHARTS.items()}
}
"""The layout that `SummaryWriter.add_custom_scalars` takes."""


class TensorBoardTracker(Tracker):
    """A `TensorBoardLogger`."""

    takes_conclusions = True

    @property
    def _writer(self) -> Any:
        return self.logger.experiment  # pyright: ignore[reportAttributeAccessIssue]

    def began(self, run: RunFacts) -> None:
        self._writer.add_custom_scalars(LAYOUT)

    def figure(self, key: str, figure: "Figure", step: int) -> None:
        self._writer.add_figure(key, figure, step)

    def phase(self, phase: Phase, step: int) -> None:
        # TensorBoard smooths scalars, and phase codes must not be smoothed: log the phase as text too.
        self._writer.add_text("topology/phase", phase.name, step)

    def events(self, events: Sequence[TopologyEvent], step: int) -> None:
        for event in events:
            where = f" in `{event.group}`" if event.group else ""
            text = f"**{event.name}** at step {event.step}{where}. {event.message} *{event.remedy}*"
            # A step of a tag holds one text: each group has a tag of its own. The event's own step, as its text has it.
            group = mangled_names([event.group])[event.group] if event.group else "network"
            self._writer.add_text(f"topology/events/{event.name}/{group}", text, event.step)

    def concluded(self, found: Mapping[str, str | float], step: int) -> None:
        lines = [f"| {key.removeprefix('topology/')} | {value} |" for key, value in found.items()]
        self._writer.add_text("topology/verdict", "\n".join(["| | |", "|---|---|", *lines]), step)

    def flush(self, step: int) -> None:
        self._writer.flush()

    def closed(self, run: RunFacts, step: int) -> None:
        self._writer.flush()
