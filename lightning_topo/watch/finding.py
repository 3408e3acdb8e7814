"""Finding the neurons of the module that trains, and the loss that it trains on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons import NeuronGroup, find_neuron_groups
from lightning_topo.neurons.capture import sharding
from lightning_topo.probes.probe import LossFn
from lightning_topo.watch.steps import Steps
from lightning_topo.watch.training import Training


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be found or proved, of which group, and what would help."""

    message: str
    group: str = GLOBAL
    remedy: str = ""


class Finding:
    def __init__(self, training: Training, declared: Sequence[Any] | None, seed: int) -> None:
        self._training, self._declared, self._seed = training, declared, seed
        self.sharding = sharding(training.root)
        self.problems: list[Problem] = []
        self.without_group: dict[str, str] = {}

    def begin(self, batch: Any) -> None: ...

    def resume(self) -> None: ...

    def loss(self, loss: Tensor, scale: float) -> None: ...

    def end(self) -> None: ...

    def after_step(self, steps: Steps) -> None: ...

    def groups(self, steps: Steps) -> Sequence[NeuronGroup]:
        if self._declared is not None:
            return self._declared
        return find_neuron_groups(self._training.module)

    @contextmanager
    def training_loss(self, loss_fn: LossFn | None) -> Iterator[Any]:
        raise RuntimeError("no tape yet")
        yield
