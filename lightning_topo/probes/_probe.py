"""The contract of a probe: a `Capture` goes in, a `ProbeResult` comes out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_topo.homology import PersistenceDiagram, Worker
from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._capture import Sharding

LossFn = Callable[[nn.Module, Any], Tensor]
"""A user's loss of a module on a batch."""

MOST_KEPT = 1 << 24
"""`Clouds` keeps gathered clouds up to this many bytes in all."""


class ProbeUnavailable(RuntimeError):
    """This probe cannot measure this training at all; it is switched off, and `remedy` says what would help."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class CloudMissing(KeyError, ValueError):
    """This process has no cloud of that group, or could not gather it."""

    def __str__(self) -> str:
        return str(self.args[0])


class Clouds(Mapping[str, Tensor]):
    """The neurons of each group as a cloud (n, d), gathered from the parameters when asked for.

    A group of several blocks is one matrix, block after block. The first clouds are kept for the next probe, up to
    `MOST_KEPT` bytes in all; the others are gathered again at each access, so that only one is in memory at a time. Do
    not use a `Clouds` after the parameters have changed; tensors that it gave stay valid, as they are copies. With
    several processes, `here` holds the clouds that all have gathered together and `failures` the errors of those that
    could not be; asking for another group raises `CloudMissing`.
    """

    def __init__(
        self,
        groups: Sequence[NeuronGroup],
        tensors: Mapping[str, Tensor],
        here: Mapping[str, Tensor] | None = None,
        failures: Mapping[str, str] | None = None,
    ) -> None:
        self._groups = {group.name: group for group in groups}
        self._tensors = tensors
        self._gathered = dict(here or {})
        self._n_bytes = 0
        self._failures = failures or {}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._gathered:
            return self._gathered[name]
        cloud = self._group(name).gather(self._tensors)
        if self._n_bytes + cloud.nbytes <= MOST_KEPT:
            self._n_bytes += cloud.nbytes
            self._gathered[name] = cloud
        return cloud

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups or self._gathered)

    def __len__(self) -> int:
        return len(self._groups or self._gathered)

    def shape(self, name: str) -> tuple[int, int]:
        """The shape of a group's cloud, which need not be gathered for it."""
        if name in self._gathered:
            rows, d = self._gathered[name].shape
            return rows, d
        group = self._group(name)
        return group.n_blocks * group.n, group.dim(self._tensors)

    def only(self, names: Iterable[str]) -> "Clouds":
        """The clouds of these groups alone, as far as there are any."""
        wanted = frozenset(names)
        groups = [group for name, group in self._groups.items() if name in wanted]
        here = {name: cloud for name, cloud in self._gathered.items() if name in wanted}
        return Clouds(groups, self._tensors, here, self._failures)

    def gather(self, names: Iterable[str] | None = None) -> "Clouds":
        """Gather these groups (by default all) now, before the parameters move on."""
        here = {}
        for name in self if names is None else names:
            if name not in self._failures:
                here[name] = self[name]
        return Clouds((), {}, here, self._failures)

    def _group(self, name: str) -> NeuronGroup:
        if name in self._failures:
            raise CloudMissing(self._failures[name])
        if name not in self._groups:
            raise CloudMissing(
                f"the neurons of {name!r} are not on this process: a probe that sets `by_group = True` is given "
                "those groups that are"
            )
        return self._groups[name]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one measurement.

    `values` maps each group (`""`: the whole network) to named numbers, or tensors of one element; any other value is
    refused, by name. `failures` maps a group to the reason why it could not be measured. `carry` is kept for the
    probe's next capture, which has this result as `previous`. `again_after_step` asks for another measurement right
    after the next optimizer step, where something that only a step creates (Adam's moments) was missing.
    `wants_own_step` asks for the next step that is measured to be recorded: it is the last part of the training loss.
    """

    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    diagrams: Mapping[str, PersistenceDiagram] = field(default_factory=dict)
    carry: Any = None
    again_after_step: bool = False
    wants_own_step: bool = False

    @classmethod
    def of(cls, found: "ProbeResult | Mapping[str, Any]") -> "ProbeResult":
        """A result, also from a plain mapping of names to numbers for the whole network."""
        return found if isinstance(found, ProbeResult) else cls(values={GLOBAL: found})


class ResultLost(RuntimeError):
    """A pending measurement will never be finished; the message says why."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A measurement computed elsewhere while training goes on; its result is logged `lag` optimizer steps later.

    Exactly then, whether it was ready long before or has to be waited for: what is published when depends on no clock,
    and is the same on every rank. `collect(previous, most_seconds)` gives the result, waiting no longer than that
    (None: as long as the probe thinks right); `previous` is the result taken in before it. It raises `ResultLost`
    where there will be none.
    """

    lag: int
    collect: "Callable[[ProbeResult | None, float | None], ProbeResult]"


@dataclass(frozen=True, slots=True)
class Capture:
    """The network at one step, for the probes to look at; nothing in it may be changed.

    `before` holds the clouds before the step that led here, None where there was none; `reference` those when
    training began, as far as they are still known, and `last` those of an earlier capture, None where no other step
    lies between. Large clouds are gathered, or read, each time they are asked for: look at one group at a time.
    `parameters_before` holds the trainable parameters before that step, by name, for probes that set
    `needs_parameters_before`. `is_first_step` where the optimizers kept no state before that step. `gradient_scales`,
    for probes that set `needs_gradient_scales`, holds for each optimizer the s by which the gradient of the training
    loss was scaled in the last step, as clipping does. `worker` computes homology elsewhere; None where a result is
    wanted at once. `training_loss(loss_fn)` is a context that yields a loss as a zero-argument callable and leaves the
    training untouched: with a `loss_fn`, that loss on the batch of the last recorded step; without, the loss of
    recorded steps.

    With several processes each holds the `neurons` of its own share of the groups. A probe with `by_group = True`
    gets these `groups` alone, and the results of all processes are merged; any other probe runs on every process,
    and rank 0's values count. `sharding` says how the parameters of `module` lie on the processes.
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
    sharding: Sharding = "whole"
    worker: Worker | None = None
    is_first_step: bool = False
    last: Mapping[str, Tensor] | None = None
    gradient_scales: Sequence[float] | None = None


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
        """The name under which its measurements are recorded."""
        ...

    def measure(self, capture: Capture) -> Any:
        """The measurement: a `ProbeResult`, the promise of one (`Pending`), or named numbers for the whole network.

        Declared as anything, because LightningCLI takes only those classes for probes that declare the very same.
        """
        ...


def blocks(cloud: Tensor, group: NeuronGroup) -> tuple[Tensor, ...]:
    """The clouds of a group's blocks, each (n, d): neurons of different blocks are not exchangeable."""
    return cloud.split(group.n) if group.n else (cloud,)
