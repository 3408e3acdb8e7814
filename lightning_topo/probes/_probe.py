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
from lightning_topo.neurons._partly_trained import stacked_with, trained_columns

LossFn = Callable[[nn.Module, Any], Tensor]
"""A user's loss of a module on a batch."""

MOST_KEPT = 1 << 24
"""`Clouds` keeps gathered clouds up to this many bytes in all."""


class ProbeUnavailable(RuntimeError):
    """Signals that a probe can never measure this training.

    Raise it in `measure`: the monitor then switches the probe off, and a `probe_failed` event shows the message and
    `remedy`, which tells the user what to change.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class CloudMissing(KeyError, ValueError):
    """Signals that this process does not have the cloud of a group, or could not gather it."""

    def __str__(self) -> str:
        return str(self.args[0])


class Clouds(Mapping[str, Tensor]):
    """Maps each group's name to its cloud: a matrix with one neuron a row, gathered on access.

    The cloud of a group with b blocks of n neurons has the shape (b * n, d), block after block. Gathered clouds are
    kept for the next access, up to 16 MiB in all; the others are gathered anew at each access. A cloud is a copy and
    stays valid; the `Clouds` itself must not be used after the parameters have changed.

    Access raises `CloudMissing`, a `KeyError`, for a group that is not on this process or is named in `failures`.

    Args:
        groups: The groups to gather on access.
        tensors: The parameters by name.
        here: Clouds that are gathered already, by group. Sharded parameters need it, as all processes gather together.
        failures: For each group that could not be gathered, the error message.
        beside: For each group of which a part is frozen, the frozen parameters by name.
    """

    def __init__(
        self,
        groups: Sequence[NeuronGroup],
        tensors: Mapping[str, Tensor],
        here: Mapping[str, Tensor] | None = None,
        failures: Mapping[str, str] | None = None,
        beside: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._groups = {group.name: group for group in groups}
        self._tensors = tensors
        self._gathered = dict(here or {})
        self._n_bytes = 0
        self._failures = failures or {}
        self._beside = beside or {}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._gathered:
            return self._gathered[name]
        cloud = self._group(name).gather(self._tensors_of(name))
        if self._n_bytes + cloud.nbytes <= MOST_KEPT:
            self._n_bytes += cloud.nbytes
            self._gathered[name] = cloud
        return cloud

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups or self._gathered)

    def __len__(self) -> int:
        return len(self._groups or self._gathered)

    def shape(self, name: str) -> tuple[int, int]:
        """Return the shape (number of neurons in all blocks, d) of a group's cloud, without gathering it."""
        if name in self._gathered:
            rows, d = self._gathered[name].shape
            return rows, d
        group = self._group(name)
        return group.n_blocks * group.n, group.dim(self._tensors_of(name))

    def only(self, names: Iterable[str]) -> "Clouds":
        """Return a `Clouds` of the named groups alone; names of other groups are ignored."""
        wanted = frozenset(names)
        groups = [group for name, group in self._groups.items() if name in wanted]
        here = {name: cloud for name, cloud in self._gathered.items() if name in wanted}
        return Clouds(groups, self._tensors, here, self._failures, self._beside)

    def trained(self) -> "Clouds":
        """Return a `Clouds` of the same groups without the slices of their neurons that are frozen."""
        here = {name: cloud for name, cloud in self._gathered.items() if name not in self._beside}
        partly = self._groups.keys() & self._beside.keys()
        beside = {name: stacked_with(self._groups[name], self._tensors, self._beside[name]) for name in partly}
        return Clouds(tuple(self._groups.values()), self._tensors, here, self._failures, beside)

    def trained_columns(self, name: str) -> Tensor:
        """Return for each column of a group's cloud whether it is trained, as a vector of flags."""
        return trained_columns(self._group(name), self._tensors_of(name), self._beside.get(name, {}))

    def gather(self, names: Iterable[str] | None = None) -> "Clouds":
        """Gather the clouds of these groups (by default all) now, before the parameters change.

        A group named in `failures` is skipped; it raises `CloudMissing` on access.
        """
        here = {}
        for name in self if names is None else names:
            if name not in self._failures:
                here[name] = self[name]
        return Clouds((), {}, here, self._failures)

    def _tensors_of(self, name: str) -> Mapping[str, Tensor]:
        return {**self._tensors, **self._beside[name]} if name in self._beside else self._tensors

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
    """The result of one measurement: what a probe's `measure` returns.

    - `values` maps each group (`""` for the whole network) to its numbers by name. A number may be a tensor of one
      element. Anything else is left out, and a `probe_failed` event names it.
    - `failures` maps each group that could not be measured to the reason.
    - `diagrams` maps each group, or block `"group[k]"`, to a persistence diagram for the record.
    - `carry` is any object for the probe's next measurement, which finds it in `capture.previous.carry`.
    - `again_after_step` asks for another measurement right after the next optimizer step. Use it if something was
      missing that only a step creates, such as Adam's moments.
    - `wants_own_step` asks to record the training step at which the probe measures next. Its loss is then the last
      part of the loss that `capture.training_loss(None)` gives.
    - `notes` are sentences for who reads the record, as why a value is missing: each is an event once.
    """

    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    diagrams: Mapping[str, PersistenceDiagram] = field(default_factory=dict)
    carry: Any = None
    again_after_step: bool = False
    wants_own_step: bool = False
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, found: "ProbeResult | Mapping[str, Any]") -> "ProbeResult":
        """Return a result as it is, and wrap a plain mapping of names to numbers as values of the whole network."""
        return found if isinstance(found, ProbeResult) else cls(values={GLOBAL: found})


class ResultLost(RuntimeError):
    """Signals that a pending measurement will never be finished, and why; `Pending.collect` raises it."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A measurement that is computed elsewhere while training goes on; `measure` may return it in place of a result.

    - `lag` is the number of optimizer steps between `measure` and the logging of the result; the end of the epoch or
      of the training cuts it short. The result is logged then even if it was ready earlier, so that the log depends on
      no clock and is the same on every rank.
    - `collect(previous, most_seconds)` waits for the result and returns it, or raises `ResultLost` if there will be
      none. `previous` is the probe's result before this one. `most_seconds` limits the wait; None leaves the limit to
      the probe.
    """

    lag: int
    collect: "Callable[[ProbeResult | None, float | None], ProbeResult]"


@dataclass(frozen=True, slots=True)
class Capture:
    """The network after one optimizer step, as a probe's `measure` receives it; a probe must change nothing in it.

    - `step` counts the optimizer steps done, `epoch` the epochs.
    - `module` is the network, `optimizers` those that train it.
    - `groups` are the groups of neurons to measure. With several processes a probe with `by_group = True` gets a share
      of the groups, and the results are merged. Any other probe gets all groups and runs on every process; the values
      of rank 0 count.
    - `neurons` maps each group to its cloud now, one neuron a row, see `Clouds`. If parameters are sharded, a process
      has the clouds of its own share of the groups alone.
    - `before` maps each group to its cloud before this step; None if there was no step.
    - `reference` maps each group to its cloud when training began. A group is missing if that cloud is not known.
    - `training_loss(loss_fn)` is a context that yields a loss as a zero-argument callable, and leaves the training
      untouched. With `loss_fn` it is `loss_fn(module, batch)` on the batch of the last recorded step. With None it is
      the loss of recorded steps, and raises `ProbeUnavailable` if no step could be recorded.
    - `previous` is this probe's last result; None at first.
    - `parameters_before` maps names to the trainable parameters before this step, in shards where these are. None
      unless the probe sets `needs_parameters_before = True`, and if there was no step.
    - `sharding` says how the parameters lie on the processes: "whole" if each process has all of them.
    - `worker` computes homology in a subprocess; None if there is none.
    - `is_first_step` is whether the optimizers had kept no state before this step.
    - `last` maps each group to its cloud at the monitor's last snapshot, from which `Distortion` measures `span_ratio`;
      None for other probes, and if no unmeasured step lies between.
    - `gradient_scales` holds for each optimizer the factor by which the gradient of the training loss was scaled in the
      last step, by clipping for example; a None in it stands for entries that were scaled by different factors. None
      unless the probe sets `needs_gradient_scales = True`.
    - `batches_per_update` is how many batches the last update took together: those that were accumulated, on all
      processes. None if that is not known, or the probe does not set `needs_gradient_scales = True`.

    Large clouds are gathered, or read from the disk, at each access: measure one group at a time.
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
    gradient_scales: Sequence[float | None] | None = None
    batches_per_update: int | None = 1


@runtime_checkable
class Probe(Protocol):
    """The interface of a probe: a `name`, and a method `measure` that takes a `Capture` and returns numbers.

    These attributes are optional:

    - `period`, a `Period`: how often to measure. Without it the monitor chooses the times.
    - `by_group = True`: measures each group by itself, so that several processes can share the groups.
    - `measures_steps = True`: compares before and after a step. `capture.before` is then kept for it also if parameters
      are sharded, where that takes a gathering of all parameters.
    - `needs_parameters_before = True`: reads `capture.parameters_before`.
    - `needs_gradient_scales = True`: reads `capture.gradient_scales` or `capture.batches_per_update`.
    - `needs_reference = False`: never reads `capture.reference`, so that the record need not keep it.

    >>> class WeightNorm:
    ...     name = "weight_norm"
    ...     def measure(self, capture):
    ...         return {"weight_norm": sum(float(p.norm()) for p in capture.module.parameters())}
    >>> isinstance(WeightNorm(), Probe)
    True
    """

    @property
    def name(self) -> str:
        """The name under which the measurements are recorded; none of `lightning_topo.quantities.RESERVED_PROBES`."""
        ...

    def measure(self, capture: Capture) -> Any:
        """Measure a capture; return a `ProbeResult`, a `Pending`, or a mapping of names to numbers for the network.

        An exception becomes a `probe_failed` event, and training goes on. The return type is `Any`, because
        LightningCLI accepts a class as a probe only if it has exactly the annotations of this protocol.
        """
        ...


def blocks(cloud: Tensor, group: NeuronGroup) -> tuple[Tensor, ...]:
    """The clouds of a group's blocks, each (n, d): neurons of different blocks are not exchangeable."""
    return cloud.split(group.n) if group.n else (cloud,)


def refuse_complex(capture: Capture) -> None:
    """Raise `ProbeUnavailable` if a trained parameter is complex: the curvature of its loss is not computed here."""
    for name, parameter in capture.module.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            raise ProbeUnavailable(
                f"{name} is complex, and the edge of stability is measured for real parameters alone.",
                "Nothing has to be done: r is measured all the same. Or keep the parameter as pairs of real numbers, "
                "and form the complex ones by torch.view_as_complex in `forward`.",
            )
