"""Whole parameters and whole neurons from a module whose parameters lie in shards on several processes.

Everything that takes a module here is a *collective*: every process calls it, with the same arguments but for `mine`,
and one that fails by itself goes on taking part.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_topo._tape.names import clean_name
from lightning_topo.neurons._group import NeuronGroup, ParamSlice
from lightning_topo.neurons._unit_hooks import is_hook_of_sharding
from lightning_topo.neurons._units import gathered_partitions, is_fsdp2_unit, own_part, units
from lightning_topo.stability._layout import is_sharded

Sharding = Literal["whole", "tensor_parallel", "fsdp2", "fsdp1", "zero3"]
"""How parameters lie on the processes; FSDP2 with tensor parallel inside counts as "fsdp2"."""

FLAT = frozenset[Sharding]({"fsdp1", "zero3"})
"""Where a process's shards have no shape of the parameters."""


def sharding(root: nn.Module) -> Sharding:
    """How the parameters of a module are sharded.

    >>> sharding(nn.Linear(2, 2))
    'whole'
    """
    if not torch.distributed.is_available():
        return "whole"
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    modules = list(root.modules())
    if any(isinstance(module, FullyShardedDataParallel) for module in modules):
        return "fsdp1"
    if any(isinstance(module, FSDPModule) for module in modules):
        return "fsdp2"
    if any(isinstance(p, DTensor) for p in root.parameters()):
        return "tensor_parallel"
    if any(hasattr(p, "ds_id") for p in root.parameters()):
        return "zero3"
    return "whole"


def whole_parameters(
    root: nn.Module, names: Collection[str] | None = None, instead: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Each parameter by its clean name, whole and detached, one after the other.

    Only one (under FSDP1, one unit's) is whole at a time: a tensor is valid until the next is asked for. `names` are
    those wanted; `instead` holds tensors to make whole in place of parameters, by clean name, as `shard_copies` gives
    them. Under FSDP1 `root` must be the outermost wrapper, and `instead` is made use of: afterwards it is as it was.
    """
    if sharding(root) == "fsdp1":
        yield from _of_fsdp_units(root, names, instead)
        return
    for raw, parameter in root.named_parameters():
        name = clean_name(raw)
        if names is not None and name not in names:
            continue
        other = (instead or {}).get(name)
        with _gathered(parameter) if other is None else _made_whole(other, parameter) as whole:
            yield name, whole


def shard_copies(root: nn.Module) -> dict[str, Tensor] | None:
    """Copies of this process's shards, by clean name, from which the whole parameters can be had when these move on.

    None where ZeRO-3 has left some of them in files. No collective.

    >>> list(shard_copies(nn.Linear(2, 2)))
    ['weight', 'bias']
    """
    parts = {clean_name(name): (p, own_part(p)) for name, p in root.named_parameters()}
    if any(part is not p and part.numel() < cast(Any, part).ds_numel for p, part in parts.values()):
        return None
    return {name: part.detach().clone() for name, (_, part) in parts.items()}


@torch.no_grad()
def local_shards(root: nn.Module) -> list[Tensor]:
    """This process's parts of the parameters, in the parameters' own memory."""
    return [shard for unit in units(root) for shard in unit.shards]


def reshard(root: nn.Module) -> None:
    """Let FSDP2 gather parameters anew in the next forward pass: after one without a backward pass it keeps them."""
    for module in root.modules():
        if is_fsdp2_unit(module):
            cast(Any, module).reshard()


def whole_copy(root: nn.Module, *, mine: bool, values: bool = True) -> nn.Module | None:
    """A copy of the module as it was before it was sharded, with whole parameters, where `mine` says so; else None.

    Without `values` it takes no memory: parameters and buffers lie on the meta device.
    """
    tensors: dict[str, Tensor] = {}
    for name, whole in whole_parameters(root):
        if mine:
            tensors[name] = whole.clone() if values else torch.empty_like(whole, device="meta")
    if not mine:
        return None
    copy = unsharded(root, tensors)
    return copy if values else copy.to("meta")


def n_elements(root: nn.Module) -> int:
    """How many parameters the whole module has; under FSDP1, how many this process keeps of them."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in root.parameters())


def gather_clouds(
    root: nn.Module,
    groups: Sequence[NeuronGroup],
    mine: Collection[str],
    instead: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Gather the clouds of the groups in `mine`, by name, and the error for each that failed.

    `groups` are those of all processes together. Each parameter in which any of them has a part travels once, and
    none stays: a process holds its own clouds and one whole parameter. What only follows neurons is left out.
    `instead` as in `whole_parameters`.
    """
    wanted = {name for group in groups for name in group.own_parameter_names}
    building = [_Building(group) for group in groups if group.name in mine]
    for name, whole in whole_parameters(root, wanted, instead):
        for cloud in building:
            cloud.take(name, whole)
    clouds: dict[str, Tensor] = {}
    failures: dict[str, str] = {}
    for cloud in building:
        try:
            clouds[cloud.group.name] = cloud.finish()
        except Exception as error:
            failures[cloud.group.name] = str(error) or type(error).__name__
    return clouds, failures


class _Building:
    """A cloud whose columns come in one parameter at a time; an error waits until they have all come."""

    def __init__(self, group: NeuronGroup) -> None:
        self.group = group
        self._pieces = [(piece, piece.names(group.n)) for piece in group.slices if piece.role != "buffer"]
        self._columns: dict[int, Tensor] = {}
        self._stacks: dict[int, dict[str, Tensor]] = {}
        self._error: Exception | None = None

    def take(self, name: str, whole: Tensor) -> None:
        try:
            for k, (piece, names) in enumerate(self._pieces):
                if name not in names:
                    continue
                stack = self._stacks.setdefault(k, {})
                stack[name] = whole if len(names) == 1 else whole.clone()
                if len(stack) == len(names):
                    self._columns[k] = self._column(piece, self._stacks.pop(k))
        except Exception as error:
            self._error = error
            self._stacks.clear()

    def finish(self) -> Tensor:
        """Return the cloud and release the memory of its parts."""
        columns, self._columns = [self._columns[k] for k in sorted(self._columns)], {}
        if self._error is not None:
            raise self._error
        if not columns:
            raise ValueError(f"expected at least one of the parameters {list(self.group.params)}, got none")
        return torch.cat(columns, dim=1) if len(columns) > 1 else columns[0]

    def _column(self, piece: ParamSlice, tensors: Mapping[str, Tensor]) -> Tensor:
        alone = NeuronGroup(self.group.name, self.group.kind, self.group.n, self.group.block_shape, (piece,))
        return alone.gather(tensors)


def _of_fsdp_units(
    root: nn.Module, names: Collection[str] | None, instead: Mapping[str, Tensor] | None
) -> Iterator[tuple[str, Tensor]]:
    """Unit by unit: what a unit holds is made whole together, since it is one flat tensor."""
    known: set[str] = set()
    with _exchanged(root, instead or {}):
        for unit in units(root):
            with unit.gathered() as whole:
                known.update(whole)
                yield from ((name, p) for name, p in whole.items() if names is None or name in names)
        for raw, parameter in root.named_parameters():  # those that FSDP was told to ignore
            name = clean_name(raw)
            if name not in known and not hasattr(parameter, "_is_flat_param") and (names is None or name in names):
                yield name, parameter.detach()


@contextmanager
def _exchanged(root: nn.Module, instead: Mapping[str, Tensor]) -> Iterator[None]:
    """Let shards have other values, and those other tensors theirs, while the context lasts."""
    pairs = [(p, instead[name]) for raw, p in root.named_parameters() if (name := clean_name(raw)) in instead]
    if any(one.shape != other.shape for one, other in pairs):  # before anything has moved
        raise RuntimeError("expected shards as they lay when they were copied, got others: were parameters replaced?")
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs)


@torch.no_grad()
def _exchange(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for one, other in pairs:
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


@contextmanager
def _gathered(parameter: Tensor) -> Iterator[Tensor]:
    """One parameter, whole."""
    if is_sharded(parameter):
        yield cast(Any, parameter).full_tensor().detach()
    elif hasattr(parameter, "ds_id"):
        with gathered_partitions([parameter]):
            yield parameter.detach()
    else:
        yield parameter.detach()


@contextmanager
def _made_whole(shard: Tensor, parameter: Tensor) -> Iterator[Tensor]:
    """A copy of a parameter's shard, whole."""
    shape = getattr(parameter, "ds_shape", shard.shape)
    if shape == shard.shape:
        with _gathered(shard) as whole:
            yield whole
        return
    group, shard = cast(Any, parameter).ds_process_group, shard.to(parameter.device)  # offloaded ones lie on the host
    parts = shard.new_empty(torch.distributed.get_world_size(group) * shard.numel())
    torch.distributed.all_gather_into_tensor(parts, shard, group=group)
    yield parts[: math.prod(shape)].view(shape)


def unsharded(root: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module as it was before it was sharded, around other, whole parameters.

    Modules are copied one by one, their attributes shared; what FSDP, tensor parallel and ZeRO have put around and
    into them (wrappers, classes, hooks) is left out. Buffers are copied. `tensors` are keyed by clean name; a
    parameter that is not among them keeps its (sharded) tensor. No collective.

    >>> copy = unsharded(nn.Sequential(nn.Linear(2, 1)), {"0.weight": torch.zeros(1, 2), "0.bias": torch.ones(1)})
    >>> copy(torch.randn(1, 2)).item()
    1.0
    """
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    parameters = {
        id(p): nn.Parameter(tensors[clean_name(name)], p.requires_grad)
        for name, p in root.named_parameters()
        if clean_name(name) in tensors
    }
    copies: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        while isinstance(module, FullyShardedDataParallel):
            module = module.module
        if id(module) in copies:
            return copies[id(module)]
        # The class that the user gave it, below the one that FSDP2 has put over it.
        plain = next(cls for cls in type(module).__mro__ if not issubclass(cls, FSDPModule))
        copy = copies[id(module)] = object.__new__(plain)
        copy.__dict__ = dict(module.__dict__)
        for hooks in _HOOKS:
            kept = {key: hook for key, hook in module.__dict__[hooks].items() if not is_hook_of_sharding(hook)}
            copy.__dict__[hooks] = type(module.__dict__[hooks])(kept)
        copy.__dict__["_parameters"] = {
            name: p if p is None else parameters.get(id(p), p) for name, p in module._parameters.items()
        }
        copy.__dict__["_buffers"] = {
            name: b if b is None else _local(b).detach().clone() for name, b in module._buffers.items()
        }
        copy.__dict__["_modules"] = {
            name: None if child is None else copied(child) for name, child in module._modules.items()
        }
        return copy

    return copied(root)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _local(buffer: Tensor) -> Tensor:
    return cast(Any, buffer).full_tensor() if is_sharded(buffer) else buffer
