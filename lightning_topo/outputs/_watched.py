"""The properties that the callback and the other loops share: events, groups, run folder, record."""

from collections.abc import Sequence
from pathlib import Path

from lightning_topo._watch import Watch
from lightning_topo.neurons import NeuronGroup
from lightning_topo.outputs.record import RunRecord, read_record
from lightning_topo.phases import TopologyEvent


class WatchedTraining:
    """The properties of the training that is watched now or was watched last; all are empty before it begins."""

    @property
    def watch(self) -> Watch | None:
        """The internal object that measures; None before the training begins."""
        raise NotImplementedError

    @property
    def events(self) -> Sequence[TopologyEvent]:
        """The events so far, oldest first."""
        return () if self.watch is None else self.watch.events

    @property
    def groups(self) -> Sequence[NeuronGroup]:
        """The groups of neurons that are measured; empty before the first step."""
        return () if self.watch is None else self.watch.groups

    @property
    def dirpath(self) -> Path | None:
        """The run folder; None before the training begins, and if no folder could be written."""
        return None if self.watch is None else self.watch.dirpath

    @property
    def record(self) -> RunRecord | None:
        """The record so far, read from its folder at each access; None if `dirpath` is None."""
        return None if self.dirpath is None else read_record(self.dirpath)
