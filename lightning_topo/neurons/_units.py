"""Units of sharded parameters: what FSDP or ZeRO-3 gathers together, just before a part of the forward pass.

To gather a unit is a *collective*: every process does it, in the same order.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_topo._tape.names import all_names, clean_name
from lightning_topo.neurons._unit_hooks import ForwardCalls, around_hooks
from lightning_topo.stability._layout import is_sharded, local, n_shards, sharded_as


@dataclass(frozen=True, eq=False)
class Part:
    """This process's part of a parameter: one of `n_shards` that are apart, the one at `place`.

    `parameter` is the tensor that an optimizer holds, `entries` those of this process, in the parameter's own memory.
    """

    parameter: Tensor
    entries: Tensor
    n_shards: int
    place: int


@dataclass(frozen=True, eq=False)
class Unit(ABC):
    """Parameters that are gathered together.

    `path` is the clean name of their module, empty for the whole. Parameters have their clean names.
    """

    path: str
    module: nn.Module

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The parameters in shards that are gathered with this unit and no other, under each of their names."""

    @abstractmethod
    def holds(self, name: str) -> bool:
        """Whether a parameter may lie in this unit, or one within it, whether it is gathered now or not."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """The size of the whole parameters."""

    @property
    @abstractmethod
    def shards(self) -> Iterable[Tensor]:
        """This process's parts, in the parameters' own memory."""

    @abstractmethod
    def whole(self) -> Iterable[tuple[str, Tensor]]:
        """The parameters that are whole now, as the module's code finds them."""

    @abstractmethod
    def gathered(self) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Whole parameters while the context lasts: a collective."""

    def gathered_in_full(self) -> AbstractContextManager[Mapping[str, Tensor]]:
        """The same in the parameters' own precision, whatever the forward pass computes in: a collective."""
        return self.gathered()

    @abstractmethod
    def parts(self) -> Iterable[Part]:
        """This process's parts of the parameters; each parameter once, whatever its names."""

    @abstractmethod
    def cut(self, name: str, whole: Tensor) -> tuple[Tensor, int, Float[Tensor, " n"]]:
        """What of a tensor shaped as a parameter lies in this process's part: the `Part`'s parameter, where, and what.

        Nothing travels.
        """

    @abstractmethod
    def around_gathering(self, begins: Callable[[], None], ends: Callable[[bool], None]) -> list[RemovableHandle]:
        """Call `begins` before the forward pass gathers or frees them, `ends` after it with whether they are whole.

        The user's own hooks see whole parameters, and run outside of that, in the order they had.
        """

    def _named(self, name: str) -> str:
        return clean_name(f"{self.path}.{name}" if self.path else name)


class FSDP2Unit(Unit):
    """A module that `fully_shard` was called on."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._in_shards())

    def holds(self, name: str) -> bool:
        return not self.path or name.startswith(f"{self.path}.")

    @property
    def n_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._in_shards().values())

    @property
    def shards(self) -> Iterable[Tensor]:
        return [cast(Any, p).to_local() for p in self._in_shards().values()]

    def whole(self) -> Iterable[tuple[str, Tensor]]:
        return [(name, p) for name, p in self._present() if not is_sharded(p)]

    @contextmanager
    def gathered(self) -> Iterator[Mapping[str, Tensor]]:
        names, module = self.names, cast(Any, self.module)
        module.unshard()
        try:
            whole = dict(self.whole())
            if missing := set(names) - set(whole):
                raise LookupError(f"{min(missing)} is not gathered with its unit")
            yield {name: whole[name].detach() for name in names}
        finally:
            module.reshard()

    @contextmanager
    def gathered_in_full(self) -> Iterator[Mapping[str, Tensor]]:
        """Not by FSDP, which casts."""
        yield {name: p.detach().to(p.device_mesh.device_type).full_tensor() for name, p in self._in_shards().items()}

    def parts(self) -> Iterable[Part]:
        return [Part(p, p, n_shards(p), 0) for p in {id(p): p for p in self._in_shards().values()}.values()]

    def cut(self, name: str, whole: Tensor) -> tuple[Tensor, int, Float[Tensor, " n"]]:
        parameter = self._in_shards()[name]
        return parameter, 0, local(sharded_as(whole, parameter)).reshape(-1)

    def _present(self) -> list[tuple[str, Tensor]]:
        return [(self._named(name), p) for name, p in all_names(self.module.named_parameters)]

    def _in_shards(self) -> dict[str, Any]:
        paths = (path for path, module in self.module.named_modules() if path and is_fsdp2_unit(module))
        inner = tuple(f"{self._named(path)}." for path in paths)
        return {name: p for name, p in self._present() if is_sharded(p) and not name.startswith(inner)}

    def around_gathering(self, begins: Callable[[], None], ends: Callable[[bool], None]) -> list[RemovableHandle]:
        return around_hooks(self.module, begins, ends)


class FSDP1Unit(Unit):
    """A module within `FullyShardedDataParallel`, whose parameters are one flat one."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._present())

    def holds(self, name: str) -> bool:
        return name in self.names

    @property
    def n_bytes(self) -> int:
        flat = self._flat
        return 0 if flat is None else flat._unpadded_unsharded_size.numel() * flat.element_size()

    @property
    def shards(self) -> Iterable[Tensor]:
        flat = self._flat
        return [getattr(flat, "_local_shard", flat)] if self._is_divided else []

    def whole(self) -> Iterable[tuple[str, Tensor]]:
        return [] if self._is_divided and self._handle.is_sharded(self._flat) else self._present()

    @contextmanager
    def gathered(self) -> Iterator[Mapping[str, Tensor]]:
        """In full precision, whatever the forward pass computes in."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(self.module, recurse=False, writeback=False):
            yield {name: p.detach() for name, p in self._present()}

    def parts(self) -> Iterable[Part]:
        flat = self._flat
        each = [] if flat is None else [flat] if flat._params is None else flat._params
        lies = (self._handle.world_size, self._handle.rank) if self._is_divided else (1, 0)
        return [Part(p, p, *lies) for p in each]

    def cut(self, name: str, whole: Tensor) -> tuple[Tensor, int, Float[Tensor, " n"]]:
        flat = self._flat
        k = self._numbers()[name]
        # A flat parameter has entries in the order of memory, and padding between them.
        every = zip(accumulate((0, *flat._numels_with_padding)), flat._is_padding_mask, strict=False)
        begins = [begin for begin, is_padding in every if not is_padding][k]
        entries = torch.empty_strided(flat._shapes[k], flat._strides[k], dtype=whole.dtype, device=whole.device)
        entries = entries.copy_(whole).as_strided((whole.numel(),), (1,))
        size = flat._sharded_size.numel() if self._is_divided else begins + len(entries)
        first = size * self._handle.rank if self._is_divided else 0
        low = min(max(first - begins, 0), len(entries))
        high = max(min(first + size - begins, len(entries)), low)
        at = 0 if flat._params is not None else max(begins - first, 0) if high > low else 0
        return (flat if flat._params is None else flat._params[k]), at, entries[low:high]

    def _numbers(self) -> dict[str, int]:
        """The number of each parameter in the flat one, under all its names."""
        flat = self._flat
        known = {name: k for k, name in enumerate(flat._fqns)}
        for info in flat._shared_param_infos:
            alias, first = (
                ".".join(filter(None, pair))
                for pair in ((info.module_name, info.param_name), (info.prim_module_name, info.prim_param_name))
            )
            known[alias] = known[first]
        return {self._named(name): k for name, k in known.items()}

    def around_gathering(self, begins: Callable[[], None], ends: Callable[[bool], None]) -> list[RemovableHandle]:
        calls = ForwardCalls(begins, ends)
        inside = cast(Any, self.module).module
        return [
            self.module.register_forward_pre_hook(calls.gather),
            inside.register_forward_pre_hook(calls.enter, prepend=True),
            inside.register_forward_hook(calls.leave, always_call=True),
            self.module.register_forward_hook(calls.freed, prepend=True, always_call=True),
        ]

    def _present(self) -> list[tuple[str, Tensor]]:
        flat = self._flat
        if flat is None:
            return []
        shared = [(".".join(filter(None, (i.module_name, i.param_name))), i) for i in flat._shared_param_infos]
        every = [*zip(flat._fqns, flat._param_infos, strict=True), *shared]
        return [(self._named(name), getattr(info.module, info.param_name)) for name, info in every]

    @property
    def _handle(self) -> Any:
        return cast(Any, self.module)._handle

    @property
    def _flat(self) -> Any:
        return None if self._handle is None else self._handle.flat_param

    @property
    def _is_divided(self) -> bool:
        return self._handle is not None and self._handle.uses_sharded_strategy


@dataclass(frozen=True, eq=False)
class Zero3Unit(Unit):
    """A module with parameters that DeepSpeed has partitioned: its own, not those of modules within.

    What it shares with another module each of them gathers, under all `aliases` of it, by the parameter's id.
    """

    aliases: Mapping[int, Sequence[str]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._partitioned())

    def holds(self, name: str) -> bool:
        return name in self.names

    @property
    def n_bytes(self) -> int:
        return sum(p.ds_numel * p.element_size() for p in self._own())

    @property
    def shards(self) -> Iterable[Tensor]:
        return [p.ds_tensor for p in self._own()]

    def whole(self) -> Iterable[tuple[str, Tensor]]:
        return [(name, p) for name, p in self._partitioned().items() if own_part(p) is p]

    @contextmanager
    def gathered(self) -> Iterator[Mapping[str, Tensor]]:
        with gathered_partitions(self._own()):
            yield {name: p.detach() for name, p in self._partitioned().items()}

    def parts(self) -> Iterable[Part]:
        return [Part(p, _held(p), *_partitions(p)) for p in self._own()]

    def cut(self, name: str, whole: Tensor) -> tuple[Tensor, int, Float[Tensor, " n"]]:
        parameter = self._partitioned()[name]
        first = _begins(parameter)
        return parameter, 0, whole.reshape(-1)[first : first + _held(parameter).numel()]

    def around_gathering(self, begins: Callable[[], None], ends: Callable[[bool], None]) -> list[RemovableHandle]:
        return around_hooks(self.module, begins, ends)

    def _own(self) -> list[Any]:
        return [p for p in self.module.parameters(recurse=False) if hasattr(p, "ds_id")]

    def _partitioned(self) -> dict[str, Any]:
        return {name: p for p in self._own() for name in self.aliases[id(p)]}


def units(root: nn.Module) -> list[Unit]:
    """The units of a module, the outermost first.

    >>> units(nn.Linear(2, 2))
    []
    """
    if not torch.distributed.is_available():
        return []
    from torch.distributed.fsdp import FullyShardedDataParallel

    found: list[Unit] = []
    aliases: dict[int, list[str]] = {}
    for name, p in all_names(root.named_parameters):
        aliases.setdefault(id(p), []).append(clean_name(name))
    for raw, module in root.named_modules():
        path = clean_name(f"{raw}.")[:-1]
        if isinstance(module, FullyShardedDataParallel):
            found.append(FSDP1Unit(path, module))
        elif is_fsdp2_unit(module):
            found.append(FSDP2Unit(path, module))
        elif any(hasattr(p, "ds_id") for p in module.parameters(recurse=False)):
            found.append(Zero3Unit(path, module, aliases))
    return found


@contextmanager
def gathered_partitions(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let parameters of ZeRO-3 be whole while the context lasts; those that are so anyway stay it: a collective."""
    import deepspeed

    apart = [p for p in parameters if own_part(p) is not p]
    with deepspeed.zero.GatheredParameters(apart) if apart else nullcontext():
        yield


def own_part(parameter: Tensor) -> Tensor:
    """The tensor whose entries are this process's part of a parameter; the parameter itself where it shows them.

    Under ZeRO-3 small parameters stay whole on every process, and those count.

    >>> p = nn.Parameter(torch.ones(2))
    >>> own_part(p) is p
    True
    """
    status = getattr(parameter, "ds_status", None)
    return parameter if status is None or status.name == "AVAILABLE" else cast(Any, parameter).ds_tensor


def _held(parameter: Any) -> Tensor:
    """`own_part` without the padding of a partition."""
    part: Any = own_part(parameter)
    if part is parameter:
        return parameter
    if part.numel() < part.ds_numel:
        raise LookupError("ZeRO-3 has left a partition in a file")
    return part[: max(min(part.numel(), parameter.ds_numel - _begins(parameter)), 0)]


def _begins(parameter: Any) -> int:
    """Which entry of a parameter this process's partition begins with."""
    return 0 if own_part(parameter) is parameter else parameter.ds_tensor.ds_numel * _partitions(parameter)[1]


def _partitions(parameter: Any) -> tuple[int, int]:
    """In how many partitions a parameter lies, and which is this process's."""
    if own_part(parameter) is parameter:
        return 1, 0
    group = parameter.ds_process_group
    return torch.distributed.get_world_size(group), torch.distributed.get_rank(group)


def is_fsdp2_unit(module: nn.Module) -> bool:
    """Whether FSDP2 gathers this module's parameters by themselves."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
