"""Whole parameters and whole neurons from a module whose parameters lie in shards on several processes.

Everything that takes a module here is a *collective*: every process calls it, with the same arguments but for `mine`,
and one that fails by itself goes on taking part.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_topo._tape.names import clean_name
from lightning_topo.neurons._group import NeuronGroup, ParamSlice

Sharding = Literal["whole", "tensor_parallel", "fsdp2", "fsdp1", "zero3"]
"""How parameters lie on the processes; FSDP2 with tensor parallel inside counts as "fsdp2"."""


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
    those wanted; `instead` holds tensors to make whole in place of parameters, by clean name (not under FSDP1 and
    ZeRO-3). Under FSDP1 `root` must be the outermost wrapper.
    """
    if sharding(root) == "fsdp1":
        yield from _of_fsdp_units(root, names)
        return
    for raw, parameter in root.named_parameters():
        name = clean_name(raw)
        if names is not None and name not in names:
            continue
        with _gathered((instead or {}).get(name, parameter)) as whole:
            yield name, whole


def shard_copies(root: nn.Module) -> dict[str, Tensor] | None:
    """Copies of this process's shards, by clean name, from which the whole parameters can be had when these move on.

    None under FSDP1 and ZeRO-3, whose flat shards mean nothing by themselves. No collective.

    >>> list(shard_copies(nn.Linear(2, 2)))
    ['weight', 'bias']
    """
    if sharding(root) in ("fsdp1", "zero3"):
        return None
    return {clean_name(name): parameter.detach().clone() for name, parameter in root.named_parameters()}


def is_unit(module: nn.Module) -> bool:
    """Whether FSDP2 gathers this module's parameters by themselves."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


@torch.no_grad()
def local_shards(root: nn.Module) -> list[Tensor]:
    """This process's parts of the parameters that lie in DTensors, in the parameters' own memory."""
    return [cast(Any, p).to_local() for p in root.parameters() if _is_dtensor(p)]


def around_gathering(
    unit: nn.Module, begins: Callable[[nn.Module, Any], None], ends: Callable[[nn.Module, Any], None]
) -> list[RemovableHandle]:
    """Call `begins` just before and `ends` just after FSDP2 gathers a unit for its forward pass.

    The user's own hooks see whole parameters: they run after `ends`, in the order they had.
    """
    hooks = cast(Any, unit._forward_pre_hooks)  # an OrderedDict
    handles = [unit.register_forward_pre_hook(begins, prepend=True), unit.register_forward_pre_hook(ends)]
    gathering = [key for key, hook in hooks.items() if _is_of_sharding(hook)]
    own = [handle.id for handle in handles]
    order = list(hooks)
    for key in order[order.index(gathering[-1]) + 1 if gathering else len(order) :]:
        if key not in own:
            hooks.move_to_end(key)
    return handles


def reshard(root: nn.Module) -> None:
    """Let FSDP2 gather parameters anew in the next forward pass: after one without a backward pass it keeps them."""
    for module in root.modules():
        if is_unit(module):
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
    none stays: a process holds its own clouds and one whole parameter. `instead` as in `whole_parameters`.
    """
    wanted = {name for group in groups for name in group.parameter_names}
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
        self._pieces = [(piece, piece.names(group.n)) for piece in group.slices]
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


def _of_fsdp_units(root: nn.Module, names: Collection[str] | None) -> Iterator[tuple[str, Tensor]]:
    """Unit by unit: what a unit holds is made whole together, since it is one flat tensor."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    # Names without wrappers: inside `summon_full_params`, FSDP leaves its own out too.
    units = {
        clean_name(f"{path}."): unit
        for path, unit in root.named_modules()
        if isinstance(unit, FullyShardedDataParallel)
    }
    for prefix, unit in units.items():
        start = "" if prefix == "." else prefix
        inner = tuple(other for other in units if other not in (prefix, ".") and other.startswith(start))
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            for raw, parameter in unit.named_parameters():
                name = start + clean_name(raw)
                if not name.startswith(inner) and (names is None or name in names):
                    yield name, parameter.detach()


@contextmanager
def _gathered(parameter: Tensor) -> Iterator[Tensor]:
    """One parameter, whole."""
    if _is_dtensor(parameter):
        yield cast(Any, parameter).full_tensor().detach()
    elif hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.detach()
    else:
        yield parameter.detach()


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
            kept = {key: hook for key, hook in module.__dict__[hooks].items() if not _is_of_sharding(hook)}
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


def _is_of_sharding(hook: Any) -> bool:
    function = getattr(hook, "func", hook)
    origin = getattr(function, "__module__", None) or ""
    return origin.startswith(("torch.distributed", "deepspeed"))


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _local(buffer: Tensor) -> Tensor:
    return cast(Any, buffer).full_tensor() if _is_dtensor(buffer) else buffer
