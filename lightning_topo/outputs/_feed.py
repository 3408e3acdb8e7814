"""The findings of each hook, for other callbacks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_topo.measurement import Measurement
from lightning_topo.phases import TopologyEvent
from lightning_topo.quantities import RESERVED_PROBES

if TYPE_CHECKING:
    from lightning_topo._watch.output import Run
    from lightning_topo.homology import PersistenceDiagram

_FOUND = RESERVED_PROBES - {"coverage"}


@dataclass(frozen=True, slots=True)
class Findings:
    """The new measurements and events that a `TopologyMonitor` passes to the other callbacks of its trainer.

    The monitor calls `on_topology_findings(trainer, pl_module, findings)` of every callback that has this method, on
    every rank, before the hook in which it measured ends. The order of the callbacks does not matter.

    - `step` and `epoch` are the step and epoch of the newest measurement or, without any, of the newest event; `step`
      counts the optimizer steps done.
    - `measurements` holds the measurements that probes made in this hook.
    - `events` holds the events since the previous findings.
    """

    step: int
    epoch: int
    measurements: tuple[Measurement, ...]
    events: tuple[TopologyEvent, ...] = ()

    @property
    def values(self) -> dict[str, dict[str, Mapping[str, float]]]:
        """The measured numbers by probe, group (`""` for the whole network) and name.

        >>> Findings(3, 0, (Measurement(3, 0, "distortion", "net.0", {"critical_ratio": 0.1}),)).values
        {'distortion': {'net.0': {'critical_ratio': 0.1}}}
        """
        found: dict[str, dict[str, Mapping[str, float]]] = {}
        for measurement in self.measurements:
            found.setdefault(measurement.probe, {})[measurement.group] = measurement.values
        return found


@dataclass(slots=True)
class FeedOutput:
    """Collects findings on every rank, until `take` returns them."""

    name: str = field(default="The feed of findings", init=False)
    _measurements: list[Measurement] = field(init=False, default_factory=list, repr=False)
    _events: list[TopologyEvent] = field(init=False, default_factory=list, repr=False)

    def start(self, run: "Run") -> None:
        """Do nothing: the feed starts empty."""

    def measurement(self, measurement: Measurement) -> None:
        """Keep a probe's measurement; what the monitor itself records (losses, learning rates, ...) is no finding."""
        if measurement.probe not in _FOUND:
            self._measurements.append(measurement)

    def event(self, event: TopologyEvent) -> None:
        """Keep an event."""
        self._events.append(event)

    def diagrams(self, step: int, diagrams: "Mapping[str, PersistenceDiagram]") -> None:
        """Do nothing: findings hold no diagrams."""

    def end(self, *, in_haste: bool = False) -> None:
        """Do nothing: the feed has nothing to close."""

    def take(self) -> Findings | None:
        """Return the findings since the last call; None if there were none."""
        if not self._measurements and not self._events:
            return None
        last = (self._measurements or self._events)[-1]
        found = Findings(last.step, last.epoch, tuple(self._measurements), tuple(self._events))
        self._measurements.clear()
        self._events.clear()
        return found
