"""What the monitor tells the other callbacks, as soon as it has measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_topo.phases import TopologyEvent


@dataclass(frozen=True, slots=True)
class Findings:
    """The fresh measurements of one look at the network, and what has happened since the look before.

    `values` holds named numbers by probe and group, of those probes alone that measured now. Every callback of the
    trainer that has a method `on_topology_findings(trainer, pl_module, findings)` is given them, on every rank and
    before the hook in which the monitor measured ends: the order of the callbacks does not matter.
    """

    step: int
    epoch: int
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    events: tuple[TopologyEvent, ...] = ()
