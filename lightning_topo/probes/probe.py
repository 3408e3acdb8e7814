"""What a probe is given, and what it gives back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons import NeuronGroup

LossFn = Callable[[nn.Module, Any], Tensor]
"""A user's loss of a module on a batch."""


class ProbeUnavailable(RuntimeError):
    """This probe cannot measure this training at all; it is switched off, and `remedy` says what would help."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class Clouds(Mapping[str, Tensor]):
    """The neurons of each group as a cloud (n, d), gathered from the parameters when first asked for.

    A gathered cloud is a copy: it stays as it was when the parameters move on.
    """

    def __init__(self, groups: Sequence[NeuronGroup], tensors: Mapping[str, Tensor]) -> None:
        self._groups = {group.name: group for group in groups}
        self._tensors = tensors
        self._gathered: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._gathered:
            self._gathered[name] = self._groups[name].gather(self._tensors)
        return self._gathered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def gather(self) -> "Clouds":
        """Gather every group now."""
        for name in self:
            _ = self[name]
        return self


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one measurement found.

    `values` holds named numbers by group, `""` for the whole network; `failures` says of a group why it could not be
    measured. `carry` is whatever the probe wants to see again: its next capture has this result as `previous`.
    `again_after_step` asks for another measurement right after the next optimizer step: something that only a step
    brings into being (the moments of Adam) was missing.
    """

    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    diagrams: Mapping[str, PersistenceDiagram] = field(default_factory=dict)
    carry: Any = None
    again_after_step: bool = False

    @classmethod
    def of(cls, found: "ProbeResult | Mapping[str, float]") -> "ProbeResult":
        """A result, also from a plain mapping of names to numbers for the whole network."""
        return found if isinstance(found, ProbeResult) else cls(values={GLOBAL: found})


@dataclass(frozen=True, slots=True)
class Capture:
    """The network at one step, for the probes to look at; nothing in it may be changed.

    `before` holds the clouds before the step that led here, None where there was none; `reference` those when
    training began. `parameters_before` holds the trainable parameters before that step, by name, for probes that set
    `needs_parameters_before`. `training_loss(loss_fn)` is a context that yields the loss on the probe batch as a
    function of nothing (of `loss_fn`, or by default of the module's own training step; a `BatchLoss`, which can be cut
    into parts), and leaves the training untouched.
    """

    step: int
    epoch: int
    module: nn.Module
    groups: Sequence[NeuronGroup]
    neurons: Mapping[str, Tensor]
    before: Mapping[str, Tensor] | None
    reference: Mapping[str, Tensor]
    optimizers: Sequence[torch.optim.Optimizer]
    training_loss: Callable[[LossFn | None], AbstractContextManager[Callable[[], Tensor]]]
    previous: ProbeResult | None = None
    parameters_before: Mapping[str, Tensor] | None = None


@runtime_checkable
class Probe(Protocol):
    """Anything with a name that can measure a capture.

    A probe of one's own needs no more than that; one with an attribute `period: Period` says how often it measures.

    >>> class WeightNorm:
    ...     name = "weight_norm"
    ...     def measure(self, capture):
    ...         return {"weight_norm": sum(float(p.norm()) for p in capture.module.parameters())}
    >>> isinstance(WeightNorm(), Probe)
    True
    """

    @property
    def name(self) -> str:
        """Under which its measurements are recorded."""
        ...

    def measure(self, capture: Capture) -> Any:
        """The measurement: a `ProbeResult`, or named numbers for the whole network.

        Declared as anything, because LightningCLI takes only those classes for probes that declare the very same.
        """
        ...


def blocks(cloud: Tensor, group: NeuronGroup) -> tuple[Tensor, ...]:
    """The clouds of a group's blocks, each (n, d): neurons of different blocks are not exchangeable."""
    return cloud.split(group.n) if group.n else (cloud,)
