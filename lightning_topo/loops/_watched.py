"""The results that every door offers: events, groups, metrics, record."""

from collections.abc import Mapping

from lightning_topo._watch import Watch
from lightning_topo.loops._session import LoopSession
from lightning_topo.outputs._watched import WatchedTraining


class Watched(WatchedTraining):
    """Of the present or last training: nothing before its first step."""

    _session: LoopSession | None = None

    @property
    def watch(self) -> Watch | None:
        """The engine that measures, between the first step and `close`."""
        return None if self._session is None else self._session.watch

    @property
    def epoch(self) -> int:
        """The present epoch, from 0."""
        return 0 if self._session is None else self._session.training.epoch

    @property
    def metrics(self) -> Mapping[str, float]:
        """The latest values by their published keys, `topology/...`."""
        values = {} if self._session is None else self._session.training.values
        return {key: float(value) for key, value in values.items()}
