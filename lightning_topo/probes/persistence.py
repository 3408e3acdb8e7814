"""The persistent homology of every group's neurons."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from lightning_topo.geometry import step_distortion
from lightning_topo.homology import (
    PersistenceDiagram,
    betti_number,
    log_bottleneck,
    log_bottleneck_bound,
    max_persistence,
    persistence,
    persistence_entropy,
    total_persistence,
)
from lightning_topo.neurons import NeuronGroup
from lightning_topo.probes.period import Period
from lightning_topo.probes.probe import Capture, ProbeResult, blocks


@dataclass(frozen=True, slots=True)
class Persistence:
    """Computes the Vietoris-Rips persistence diagram of every group, up to homology dimension `max_dim`.

    `every_n_epochs="auto"` begins with every epoch; `every_n_steps` counts optimizer steps instead. Groups of more
    than `max_landmarks` neurons are subsampled by farthest points, with the covering radius in the diagram.

    Values by group, for each dimension k: `betti_k` at `betti_scale` times the diameter, `total_persistence_k`,
    `entropy_k`, `max_persistence_k`; `log_bottleneck_k` to the previous capture, with `log_bottleneck_bound`, the most
    that the distortion in between allows (exact diagrams only).

    >>> Persistence().period, Persistence(every_n_steps=20).period.unit
    (Period(every=1, unit='epoch', adaptive=True), 'step')
    """

    every_n_epochs: int | Literal["auto"] = "auto"
    every_n_steps: int | Literal["auto"] | None = None
    max_dim: int = 1
    max_landmarks: int | None = 512
    betti_scale: float = 0.25
    engine: str | None = None
    name: str = field(default="persistence", init=False, repr=False)
    by_group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.period
        if self.max_dim < 0:
            raise ValueError(f"expected max_dim >= 0, got {self.max_dim}")
        if not self.betti_scale > 0.0:
            raise ValueError(f"expected betti_scale > 0, got {self.betti_scale}")

    @property
    def period(self) -> Period:
        """How often it measures."""
        if self.every_n_steps is not None:
            return Period.parse(self.every_n_steps, default=100)
        return Period.parse(self.every_n_epochs, default=1, unit="epoch")

    def measure(self, capture: Capture) -> ProbeResult:
        """The diagrams of each group, block by block, and their summaries."""
        values: dict[str, Mapping[str, float]] = {}
        failures: dict[str, str] = {}
        diagrams: dict[str, PersistenceDiagram] = {}
        seen: Mapping[str, _Block] = {} if capture.previous is None else capture.previous.carry
        carry = dict(seen)
        for group in capture.groups:
            try:
                now = self._blocks(capture.neurons[group.name], group)
            except ValueError as error:
                failures[group.name] = str(error)
                continue
            values[group.name] = self._summaries(list(now.values())) | self._change(seen, now)
            diagrams |= {name: block.diagram for name, block in now.items()}
            carry |= now
        return ProbeResult(values, failures, diagrams, carry)

    def _blocks(self, cloud: Tensor, group: NeuronGroup) -> "dict[str, _Block]":
        clouds = blocks(cloud, group)
        names = [group.name] if len(clouds) == 1 else [f"{group.name}[{b}]" for b in range(len(clouds))]
        return {
            name: _Block(
                points,
                persistence(points, max_dim=self.max_dim, max_landmarks=self.max_landmarks, engine=self.engine),
            )
            for name, points in zip(names, clouds, strict=True)
        }

    def _summaries(self, found: "list[_Block]") -> dict[str, float]:
        diagrams = [block.diagram for block in found]
        values: dict[str, float] = {}
        for k in range(self.max_dim + 1):
            values[f"betti_{k}"] = float(
                sum(betti_number(diagram, k, self.betti_scale * diagram.diameter) for diagram in diagrams)
            )
            values[f"total_persistence_{k}"] = sum(total_persistence(diagram, k) for diagram in diagrams)
            values[f"entropy_{k}"] = max(persistence_entropy(diagram, k) for diagram in diagrams)
            values[f"max_persistence_{k}"] = max(max_persistence(diagram, k) for diagram in diagrams)
        return values

    def _change(self, before: "Mapping[str, _Block]", now: "Mapping[str, _Block]") -> dict[str, float]:
        """How far the diagrams moved since the previous capture, the worst block's."""
        if not now.keys() <= before.keys():
            return {}
        values = {
            f"log_bottleneck_{k}": max(
                log_bottleneck(before[name].diagram, block.diagram, k) for name, block in now.items()
            )
            for k in range(self.max_dim + 1)
        }
        if all(block.diagram.exact for block in now.values()):
            values["log_bottleneck_bound"] = max(
                log_bottleneck_bound(step_distortion(before[name].points, block.points)) for name, block in now.items()
            )
        return values


@dataclass(frozen=True, slots=True)
class _Block:
    """A block's cloud with its diagram, kept for the comparison with the next."""

    points: Tensor
    diagram: PersistenceDiagram
