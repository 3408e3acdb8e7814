"""Lightning's CSV file: every column there from the first row on."""

from collections.abc import Collection, Mapping
from typing import Any

from lightning_topo.outputs.trackers._tracker import Tracker


class CSVTracker(Tracker):
    """A `CSVLogger`, which reads and rewrites its whole file whenever a key appears for the first time.

    The worst group changes as training goes on, so keys would go on appearing. Each quantity therefore gets its
    columns for all groups at once, as cells that stay empty: the file is rewritten a few times, while it is short.
    """

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._columns: set[str] = set()

    def row(self, values: Mapping[str, float], step: int, known: Collection[str] = ()) -> None:
        new = dict.fromkeys(set(known) - self._columns, "")
        self._columns.update(new)
        self.logger.log_metrics({**new, **values}, step=step)  # pyright: ignore[reportArgumentType]
