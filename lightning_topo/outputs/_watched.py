"""The properties that the callback and the other doors share: events, groups, metrics, record."""

from collections.abc import Sequence
from pathlib import Path

from lightning_topo._watch import Watch
from lightning_topo.neurons import NeuronGroup
from lightning_topo.outputs.record import RunRecord, read_record
from lightning_topo.phases import TopologyEvent


class WatchedTraining:
    """Of the present or last training: nothing before it began."""

    @property
    def watch(self) -> Watch | None:
        """The engine."""
        raise NotImplementedError

    @property
    def events(self) -> Sequence[TopologyEvent]:
        """What has happened, oldest first."""
        return () if self.watch is None else self.watch.events

    @property
    def groups(self) -> Sequence[NeuronGroup]:
        """The groups of neurons that are measured; known after the first step."""
        return () if self.watch is None else self.watch.groups

    @property
    def dirpath(self) -> Path | None:
        """The run folder; None before the training began, and where none could be written."""
        return None if self.watch is None else self.watch.dirpath

    @property
    def record(self) -> RunRecord | None:
        """The record as it stands, read anew; None where `dirpath` is None."""
        return None if self.dirpath is None else read_record(self.dirpath)
