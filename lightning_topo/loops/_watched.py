"""The results that every door offers: events, groups, metrics, record."""

from collections.abc import Mapping

from lightning_topo._watch import Watch
from lightning_topo.loops._session import LoopSession
from lightning_topo.outputs._watched import WatchedTraining


class Watched(WatchedTraining):
    """Gives access to the present or last training of a loop: nothing is there before its first step."""

    _session: LoopSession | None = None

    @property
    def watch(self) -> Watch | None:
        """The internal object that measures; None before the first step."""
        return None if self._session is None else self._session.watch

    @property
    def epoch(self) -> int:
        """The index of the present epoch, from 0."""
        return 0 if self._session is None else self._session.training.epoch

    @property
    def metrics(self) -> Mapping[str, float]:
        """The latest value of each quantity by its published key, `topology/...`; empty before the first step."""
        values = {} if self._session is None else self._session.training.values
        return {key: float(value) for key, value in values.items()}
