"""The interface of outputs: record, page, trackers, terminal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo._watch.published_values import Readings
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import Measurement
from lightning_topo.neurons import NeuronGroup
from lightning_topo.phases import TopologyEvent


@dataclass(frozen=True, slots=True)
class Run:
    """The facts that every output gets when a run begins or resumes.

    `settings` and `facts` (optimizer, learning rate, ...) are plain values: they may leave the machine.
    """

    groups: Sequence[NeuronGroup]
    readings: Readings
    settings: Mapping[str, Any]
    step: int = 0
    epoch: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Output(Protocol):
    """A destination of measurements and events: five verbs. One that fails harms no other."""

    def start(self, run: Run) -> None:
        """The run begins, or goes on after a resume."""
        ...

    def measurement(self, measurement: Measurement) -> None:
        """Take in one measurement."""
        ...

    def event(self, event: TopologyEvent) -> None:
        """Take in one event."""
        ...

    def diagrams(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Take in the diagrams of one capture."""
        ...

    def end(self, *, in_haste: bool = False) -> None:
        """The run is over; `in_haste` where it broke off: only what takes milliseconds."""
        ...


@runtime_checkable
class ReferenceStore(Protocol):
    """Keeps what was found at the beginning: the clouds that distances are measured from, and who is in which group."""

    def reference(self, step: int, clouds: Iterable[tuple[str, Tensor]]) -> bool:
        """Keep the clouds of `step`, each with its group's name; whether that was possible."""
        ...

    def parameters(self, groups: Sequence[NeuronGroup], coverage: Sequence[ParameterCoverage]) -> None:
        """Keep for every parameter its groups, or why it is in none."""
        ...

    def read_reference(self, group: str) -> Tensor | None:
        """The cloud kept of a group; None where there is none."""
        ...

    def totals_from(self, step: int, groups: Iterable[str]) -> None:
        """Say that the totals of these groups count from the clouds of `step`, which it does not keep."""
        ...


@runtime_checkable
class RunOutputs(Output, Protocol):
    """All outputs of one run together; `record` keeps the clouds of the beginning, on the first rank alone."""

    @property
    def dirpath(self) -> Path | None:
        """The run folder; None where there is no record."""
        ...

    @property
    def run_id(self) -> str | None:
        """The record's name of the run; None where there is no record."""
        ...

    @property
    def store(self) -> ReferenceStore | None:
        """Where the clouds of the beginning are kept; None on other ranks than the first."""
        ...

    @property
    def noticed(self) -> Sequence[TopologyEvent]:
        """Events that the outputs themselves have made and sent."""
        ...
