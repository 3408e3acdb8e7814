"""MLflow: figures and the record as artifacts of the run, settings and groups as a file, the phase as a tag."""

from typing import TYPE_CHECKING, Any

from lightning_topo.callbacks.trackers.tracker import RunFacts, Tracker
from lightning_topo.phases import Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MLFlowTracker(Tracker):
    """An `MLFlowLogger`, whatever its store."""

    @property
    def _client(self) -> Any:
        return self.logger.experiment  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _run_id(self) -> str:
        return self.logger.run_id  # pyright: ignore[reportAttributeAccessIssue]

    def began(self, run: RunFacts) -> None:
        self._client.log_dict(self._run_id, run.config(), "topology/config.json")

    def figure(self, key: str, figure: "Figure", step: int) -> None:
        self._client.log_figure(self._run_id, figure, f"{key}/{step:09d}.png")

    def phase(self, phase: Phase, step: int) -> None:
        self._client.set_tag(self._run_id, "topology.phase", phase.name)

    def closed(self, run: RunFacts, step: int) -> None:
        for path, name in run.files():
            self._client.log_artifact(self._run_id, str(path), str("topology/record" / name.parent))
