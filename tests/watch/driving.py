"""A small network trained by hand under the engine's parts, and an output that keeps what it is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo import Distortion
from lightning_topo._watch.output import Run
from lightning_topo._watch.settings import WatchSettings
from lightning_topo._watch.steps import Steps
from lightning_topo._watch.watch import Watch
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.loops._training import LoopTraining
from lightning_topo.measurement import Measurement
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.outputs._outputs import Outputs
from lightning_topo.phases import TopologyEvent


def two_layers() -> nn.Sequential:
    """Two hidden layers, of 5 and 4 units."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


class LowRank(nn.Module):
    """A layer beside which a product of two small matrices is trained, as LoRA does it; it begins at 0."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def hidden(name: str, n: int, outgoing: str) -> NeuronGroup:
    """The units of a layer: incoming weights, biases and outgoing weights."""
    pieces = (ParamSlice(f"{name}.weight"), ParamSlice(f"{name}.bias"), ParamSlice(f"{outgoing}.weight", dims=(1,)))
    return NeuronGroup(name, "unit", n, (), pieces, "verified")


GROUPS = (hidden("0", 5, "2"), hidden("2", 4, "4"))


def training_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> LoopTraining:
    return LoopTraining.of(model, optimizer or torch.optim.SGD(model.parameters(), lr=0.1))


def steps_of(model: nn.Module, on_outside: Callable[..., None] = lambda optimizer, names: None) -> Steps:
    """The updates of a module; its caller releases it."""
    return Steps(model, on_settle=lambda lost: None, on_outside=on_outside)


@dataclass
class Kept:
    """An output that keeps everything."""

    runs: list[Run] = field(default_factory=list)
    measured: list[Measurement] = field(default_factory=list)
    events: list[TopologyEvent] = field(default_factory=list)
    drawn: list[tuple[int, list[str]]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def start(self, run: Run) -> None:
        self.runs.append(run)
        self.order.append("start")

    def measurement(self, measurement: Measurement) -> None:
        self.measured.append(measurement)
        self.order.append(measurement.probe)

    def event(self, event: TopologyEvent) -> None:
        self.events.append(event)
        self.order.append(str(event.name))

    def diagrams(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        self.drawn.append((step, list(diagrams)))

    def end(self, *, in_haste: bool = False) -> None:
        self.order.append("end")

    def of(self, probe: str) -> list[tuple[int, str, dict[str, float]]]:
        """The values of one probe: step, group, values."""
        return [(m.step, m.group, dict(m.values)) for m in self.measured if m.probe == probe]


class Watched:
    """A training by hand; `kept` is all that its engine has sent."""

    def __init__(self, probes=(Distortion(1),), saved=None, step=0, optimizer=torch.optim.SGD, **settings):
        self.model = two_layers()
        self.optimizer = optimizer(self.model.parameters(), lr=0.1)
        self.training = training_of(self.model, self.optimizer)
        self.training.step = step
        self.kept = Kept()
        options = {"max_overhead": None, "on_error": "raise"} | settings
        settings = WatchSettings(probes=tuple(probes), **options)
        self.watch = Watch(self.training, settings, Outputs((self.kept,)), saved)
        self.x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))

    def batch(self, batch=None, *, updates=True, breaks=False):
        self.watch.before_batch(batch)
        loss = F.cross_entropy(self.model(self.x), torch.tensor([0, 1] * 3))
        self.watch.before_backward(loss)
        loss.backward()
        self.watch.after_backward()
        if breaks:
            self.watch.break_off()
            return
        if updates:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.watch.after_batch(loss.detach())
        self.training.step = max(self.training.step, self.watch.last_step)

    def batches(self, n):
        for _ in range(n):
            self.batch()

    def steps(self, probe):
        return sorted({step for step, _, _ in self.kept.of(probe)})
