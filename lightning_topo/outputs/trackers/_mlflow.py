"""MLflow: figures and the record as artifacts of the run, settings and groups as a file, the phase as a tag."""

import itertools
import math
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lightning_topo.outputs.trackers._tracker import RunFacts, Tracker, shortened
from lightning_topo.phases import Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_VALUES = 1000
"""In one request."""
_DESCRIPTION = "mlflow.note.content"
"""The tag that a run's page shows whole, as its description; other tags it cuts."""
_OURS = "**verdict**"
"""How a description of ours begins; a user's own is left alone."""


class MLFlowTracker(Tracker):
    """An `MLFlowLogger`, whatever its store."""

    takes_conclusions = True

    @property
    def _client(self) -> Any:
        return self.logger.experiment  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _run_id(self) -> str:
        return self.logger.run_id  # pyright: ignore[reportAttributeAccessIssue]

    def began(self, run: RunFacts) -> None:
        self._client.log_dict(self._run_id, run.config(), "topology/config.json")

    def row(self, values: Mapping[str, float], step: int, known: Collection[str] = ()) -> None:
        # One bad name, or one value too many, and MLflow takes none of the row.
        fitting = {_fitting(key): value for key, value in values.items()}
        for i in range(0, len(fitting), _MOST_VALUES):
            part = dict(itertools.islice(fitting.items(), i, i + _MOST_VALUES))
            self.logger.log_metrics(part, step=step)

    def figure(self, key: str, figure: "Figure", step: int) -> None:
        self._client.log_figure(self._run_id, figure, f"{_fitting(key)}/{step:09d}.png")

    def phase(self, phase: Phase, step: int) -> None:
        self._client.set_tag(self._run_id, "topology.phase", phase.name)

    def concluded(self, found: Mapping[str, str | float], step: int) -> None:
        for key, value in found.items():
            if isinstance(value, str):
                self._client.set_tag(self._run_id, key.replace("/", "."), value)
            elif math.isfinite(value):
                self._client.log_metric(self._run_id, key, value, step=step)
        note = "\n\n".join(f"**{key.removeprefix('topology/')}**: {value}" for key, value in found.items())
        own = self._client.get_run(self._run_id).data.tags.get(_DESCRIPTION, _OURS)
        if note and own.startswith(_OURS):
            self._client.set_tag(self._run_id, _DESCRIPTION, note)

    def closed(self, run: RunFacts, step: int) -> None:
        for path, name in run.files():
            self._client.log_artifact(self._run_id, str(path), str("topology/record" / name.parent))


def _fitting(key: str) -> str:
    """A name that MLflow takes: of at most 250 characters, and clean as a path.

    >>> _fitting("topology//abs//path/betti_0")
    'topology/abs/path/betti_0'
    """
    return shortened(re.sub("/+", "/", key))
