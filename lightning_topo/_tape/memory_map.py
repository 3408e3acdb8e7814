"""Which slot a tensor is: by its storage and geometry, since objects come and go while memory is shared."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef

from lightning_topo._tape.program import Call, Layout, Slot, alias, bits, region, set_data

Key = tuple[Any, ...]
DERIVATIVES = frozenset(
    {"torch._DDPSink"}
    | {"torch.RegisterPostBackwardFunction", "torch.RegisterPreBackwardFunction"}  # FSDP2
    | {"deepspeed.PreBackwardFunctionForModule", "deepspeed.PostBackwardFunctionModule"}
    | {"deepspeed.LinearFunctionForZeroStage3"}
)
"""Autograd functions, with their package, whose backward pass is the derivative of what their forward pass computes.

Not that of checkpointing: what it runs may itself call functions, which nobody sees inside of it.
"""

_FRESH = itertools.count(1)  # no address is as small


@dataclass(slots=True)
class _Named:
    """A parameter or buffer: its slot, where it stood, and the object itself."""

    slot: int
    tensor: Tensor
    value: Tensor | None
    version: int
    names: list[str] = field(default_factory=list)
    is_buffer: bool = False


class MemoryMap:
    """Gives every tensor a slot. Holds parameters and constants; for other tensors a weak reference to the storage.

    A tensor is known again by its object, if that has still the memory it had, and else by its memory: `x.data`, a
    variable that autograd has saved, or a parameter whose `data` was replaced are other objects, or other memory.
    `copies` of parameters, by the id of these, spare others of the same values; nobody may write to them.
    """

    def __init__(self, copies: Mapping[int, Tensor] | None = None) -> None:
        self._copies = dict(copies or {})
        self.layouts: list[Layout] = []
        self.storages: list[int] = []
        self.copied_bytes = 0
        self.connected: list[bool] = []  # whether a gradient flows to the slot through recorded calls
        self.functions: dict[int, str] = {}  # outputs of autograd functions, which no call has connected
        self.detached_from: dict[int, int] = {}
        self.handed_out: set[int] = set()  # slots that autograd had detached, and that were read as what they are of
        self._keys: list[Key] = []
        self._by_id: dict[int, int] = {}
        self._by_key: dict[Key, list[int]] = {}
        self._roots: dict[int, int] = {}
        self._weak: dict[int, StorageWeakRef] = {}
        self._constants: dict[int, Tensor] = {}
        self._alive: dict[int, Tensor] = {}
        self._held: dict[int, list[int]] = {}
        self._named: dict[int, _Named] = {}
        self._current: dict[int, _Named] = {}  # by the id of the tensor, which `_Named` keeps alive
        self._renewed: dict[int, int] = {}  # by storage what identifies it since it was filled anew
        self._filled_by: dict[int, int] = {}  # by storage the gathering that has filled it
        self._lying_in: dict[int, list[int]] = {}  # the slots of each storage
        self._resizable: dict[int, None] = {}  # storages that numpy has not seen, in the order in which they were found

    # Names

    def name(self, name: str, tensor: Tensor, *, is_buffer: bool = False) -> None:
        """Give a parameter or buffer a slot, or its slot another name."""
        known = self._current.get(id(tensor))
        if known is None:
            known = self._enter(tensor, is_buffer)
        if name not in known.names:
            known.names.append(name)

    def name_gathered(
        self, name: str, tensor: Tensor, *, keep_value: bool, gathering: int = 0, anew: bool = False
    ) -> None:
        """Name a parameter whose memory was just filled with its shards: how they came there is no part of it.

        If it was filled `anew`, it gets another slot: unless its value is kept, and the same. What one `gathering` has
        filled is one memory, in which several parameters may lie.
        """
        known = self._current.get(id(tensor))
        if known is not None and self._keys[known.slot] != self._key(tensor):
            known = None  # it lies elsewhere now
        if known is not None and known.value is not None:
            anew = not _equal(known.value, tensor.detach())
        if known is None or (anew and name in known.names):  # else another name of what has just got one
            storage = tensor.untyped_storage()._cdata
            if known is not None or self._filled_by.get(storage) != gathering:
                self._filled_by[storage], self._renewed[storage] = gathering, next(_FRESH)
            known = self._enter(tensor, is_buffer=False, keep_value=keep_value)
        if name not in known.names:
            known.names.append(name)

    def _enter(self, tensor: Tensor, is_buffer: bool, *, keep_value: bool = True) -> _Named:
        slot = self.new(tensor, connected=tensor.requires_grad)
        copy = self._copies.pop(id(tensor), None)
        if keep_value and (copy is None or not _equal(copy, tensor.detach())):
            copy = tensor.detach().clone()
        self.copied_bytes += copy.nbytes if copy is not None and copy.layout is torch.strided else 0
        named = _Named(slot, tensor, copy, tensor._version, is_buffer=is_buffer)
        self._named[slot] = self._current[id(tensor)] = named
        return named

    def refresh(self, name: str, tensor: Tensor) -> None:
        """Give a parameter or buffer that was moved while nothing was recorded a slot of its new value."""
        known = self._current.get(id(tensor))
        if known is None:
            self.name(name, tensor)
            return
        same = self._keys[known.slot] == self._key(tensor) and known.version == tensor._version
        if same and known.value is not None and _equal(known.value, tensor.detach()):
            return
        names, is_buffer = known.names, known.is_buffer
        self._enter(tensor, is_buffer).names = list(names)

    def is_named(self, tensor: Tensor) -> bool:
        """Whether this very tensor is a parameter or buffer with a name."""
        return id(tensor) in self._current

    def names(self) -> dict[int, tuple[str, ...]]:
        """The names of each named slot."""
        return {slot: tuple(named.names) for slot, named in self._named.items()}

    def values(self) -> dict[int, Tensor]:
        """The values of named slots where they began, as far as they were kept."""
        return {slot: named.value for slot, named in self._named.items() if named.value is not None}

    def trainable(self) -> dict[str, bool]:
        """Whether each parameter is trained; buffers are left out."""
        return {
            name: named.tensor.requires_grad
            for named in self._named.values()
            if not named.is_buffer
            for name in named.names
        }

    def constants(self) -> Mapping[int, Tensor]:
        """The tensors that no recorded call has computed."""
        return self._constants

    def handed_to_numpy(self, newest: int | None = None) -> tuple[int, ...]:
        """The slots whose memory numpy has been given since they are known, among the `newest` storages.

        `Tensor.numpy` fixes the size of the storage that it shares. What is freed by now is not seen.
        """
        found = []
        for storage in list(islice(reversed(self._resizable), newest)):
            there: Any = torch.UntypedStorage._new_with_weak_ptr(self._weak[storage].cdata)
            if there is not None and not there.resizable():
                del self._resizable[storage]
                found.append(self._roots[storage])
        return tuple(found)

    # Slots

    def new(self, tensor: Tensor, *, connected: bool) -> int:
        """A new slot, for the output of a call."""
        key = self._key(tensor)
        layout = Layout(key[2], key[3], key[1], tensor.dtype, tensor.device)
        slot = self._by_id[id(tensor)] = self._at(key, layout, connected=connected)
        if key[0] not in self._weak:
            self._roots[key[0]] = slot
            if key[5]:
                storage = tensor.untyped_storage()
                self._weak[key[0]] = StorageWeakRef(storage)
                if storage.resizable():
                    self._resizable[key[0]] = None
        return slot

    def _at(self, key: Key, layout: Layout, *, connected: bool) -> int:
        """A new slot in this place."""
        slot = len(self.layouts)
        self._by_key.setdefault(key, []).append(slot)
        self._lying_in.setdefault(key[0], []).append(slot)
        self._keys.append(key)
        self.storages.append(key[0])
        self.connected.append(connected)
        self.layouts.append(layout)
        return slot

    def known_slot(self, tensor: Tensor) -> int | None:
        """The slot of a tensor that some recorded call has made or used; None where none has."""
        same = self._by_key.get(self._key(tensor), [])
        slot = self._by_id.get(id(tensor))
        return slot if slot in same else same[-1] if same else None

    def forget(self, tensor: Tensor) -> None:
        """Say that a tensor has become another one."""
        self._by_id.pop(id(tensor), None)

    def connect(self, slot: int) -> None:
        """Say that a gradient flows to the slot since something was written there."""
        self.connected[slot] = True

    def find(self, tensor: Tensor) -> tuple[int, list[Call]]:
        """The slot of an argument, and the calls that make it out of memory already known."""
        key = self._key(tensor)
        slot = self._by_id.get(id(tensor))
        calls: list[Call] = []
        if slot is not None and self._keys[slot] == key:
            pass
        elif (named := self._current.get(id(tensor))) is not None:
            slot, calls = self._rebound(tensor, named, key)
        else:
            slot, calls = self._by_memory(tensor, key)
            # A parameter made in the step is not to be taken for a detached one.
            if tensor.requires_grad and tensor.is_leaf:
                self._by_id[id(tensor)], self._alive[id(tensor)] = slot, tensor
        return self._with_gradient(tensor, slot), calls

    def _rebound(self, tensor: Tensor, named: _Named, key: Key) -> tuple[int, list[Call]]:
        """A parameter whose `data` was replaced: the same variable, with other memory."""
        source, calls = self._by_memory(tensor.detach(), key)
        old, layout = self._keys[named.slot], self.layouts[named.slot]
        left = self._at(old, layout, connected=False)  # the memory that it had, which others may still have
        calls.append(Call(alias, (Slot(named.slot), layout.shape, None, 0), {}, (left,), (), False))
        self._by_key[old].remove(named.slot)
        if self._roots.get(old[0]) == named.slot:
            self._roots[old[0]] = left
        self._keys[named.slot] = key
        self.storages[named.slot] = key[0]
        self._by_key.setdefault(key, []).append(named.slot)
        self._lying_in.setdefault(key[0], []).append(named.slot)
        self._by_id[id(tensor)] = named.slot
        return named.slot, [*calls, Call(set_data, (Slot(named.slot), Slot(source)), {}, (), (named.slot,), False)]

    def _by_memory(self, tensor: Tensor, key: Key) -> tuple[int, list[Call]]:
        same = self._by_key.get(key, [])
        wanted = tensor.requires_grad and tensor.grad_fn is not None
        if wanted:
            for slot in reversed(same):
                if self.connected[slot]:
                    return slot, []
        if same:
            return self._aliased(tensor, same[-1], same[-1], wanted)
        root = self._roots.get(key[0]) if key[0] in self._weak else None
        if root is None or (root in self._constants and not self._is_shared(key[0])):
            return self._constant(tensor), []
        return self._aliased(tensor, root, root, wanted)

    def _aliased(self, tensor: Tensor, slot: int, root: int, wanted: bool) -> tuple[int, list[Call]]:
        """A new slot on the memory of another, with its gradient or without."""
        same_place = self._keys[slot] == self._key(tensor)
        if same_place and (wanted or not self.connected[slot]):
            return slot, []
        layout = self.layouts[root]
        offset = tensor.storage_offset() - layout.offset
        if offset < 0 or tensor.dtype != layout.dtype:
            if wanted:
                raise RuntimeError("memory that is shared in a way that cannot be followed")
            at = tensor.storage_offset() * tensor.element_size() - layout.offset * layout.dtype.itemsize
            new = self.new(tensor, connected=False)
            seen = (Slot(root), tensor.dtype, tuple(tensor.shape), tensor.stride(), at)
            return new, [Call(bits, seen, {}, (new,), (), False)]
        new = self.new(tensor, connected=wanted)
        operator = region if wanted else alias
        is_same = not wanted and self._keys[root] == self._key(tensor)
        args = (Slot(root), tuple(tensor.shape), None if is_same else tuple(tensor.stride()), offset)
        return new, [Call(operator, args, {}, (new,), (), wanted)]

    def copied_storage(self, to: Tensor, source: Tensor) -> Call | None:
        """A copy of all bytes into new memory as one of the numbers that lie there; None where it is no such copy.

        So `copy.deepcopy` copies a tensor that is no parameter, and with it every buffer of a module.
        """
        if not (_is_all_bytes(to) and _is_all_bytes(source)) or to.numel() != source.numel():
            return None
        root, others = self._roots[self.storage_of(source)], self._lying_in[self.storage_of(to)]
        layout = self.layouts[root]
        if layout.dtype is torch.uint8 or math.prod(layout.shape) * layout.dtype.itemsize != to.numel():
            return None
        if len(others) > 1 or others[0] not in self._constants:  # somebody knows this memory
            return None
        storage = to.untyped_storage()
        copy = torch.empty(0, dtype=layout.dtype, device=to.device).set_(storage, 0, layout.shape, layout.stride)
        self._renewed[storage._cdata] = next(_FRESH)  # who looks at it from now on sees what was written
        slot = self.new(copy, connected=False)
        return Call(torch.ops.aten.clone.default, (Slot(root),), {}, (slot,), (), False)

    def _constant(self, tensor: Tensor) -> int:
        slot = self.new(tensor, connected=False)
        self._constants[slot] = tensor.detach()
        self._held.setdefault(self.storages[slot], []).append(slot)
        return slot

    def _is_shared(self, storage: int) -> bool:
        """Whether constants of this storage have been written to, so that they are one memory."""
        return storage in self._weak and storage not in self._held

    def about_to_write(self, tensor: Tensor) -> None:
        """Copy the constants that lie in the memory of a tensor that an operator is going to write.

        Of several one is that memory from now on, the written one or the first: the others are found no more.
        """
        storage = self.storage_of(tensor)
        held = self._held.pop(storage, [])
        for slot in held:
            self._constants[slot] = self._constants[slot].clone()
        if len(held) > 1:
            written = self.known_slot(tensor)
            self._roots[storage] = written if written in held else self._roots[storage]
            for slot in held:
                if slot != self._roots[storage]:
                    self._by_key[self._keys[slot]].remove(slot)
                    self._keys[slot] = ()

    def storage_of(self, tensor: Tensor) -> int:
        """What identifies the memory of a tensor."""
        return self._key(tensor)[0]

    def _with_gradient(self, tensor: Tensor, slot: int) -> int:
        """The slot whose gradient a tensor has, where that is not what recorded calls have given to its own.

        What autograd saves it detaches, and hands out again, for a derivative of the derivative, with its gradient. A
        gradient that nothing recorded explains is that of an autograd function of the user's.
        """
        if self.connected[slot] or not tensor.requires_grad or tensor.grad_fn is None:
            return slot
        origin = slot
        while origin in self.detached_from:
            origin = self.detached_from[origin]
            if self.connected[origin]:
                self.handed_out.add(slot)
                return origin
        if isinstance(tensor.grad_fn, BackwardCFunction):
            self.functions[slot] = _function(tensor.grad_fn)
            self.connected[slot] = True
        return slot

    def _key(self, tensor: Tensor) -> Key:
        if tensor.layout is not torch.strided:
            self._alive[id(tensor)] = tensor  # known by the object alone
            return (-id(tensor), 0, tuple(tensor.shape), (), tensor.dtype, False)
        storage = tensor.untyped_storage()._cdata
        if self._renewed:
            storage = self._renewed.get(storage, storage)
        return (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype, True)


def _function(grad_fn: Node) -> str:
    """The name of an autograd function; of those whose backward pass is known, with the package."""
    function = getattr(type(grad_fn), "_forward_cls", type(grad_fn))
    name = grad_fn.name().removesuffix("Backward")
    whole = f"{function.__module__.partition('.')[0]}.{name}"
    return whole if whole in DERIVATIVES else name


def _is_all_bytes(tensor: Tensor) -> bool:
    """Whether a tensor shows a whole storage as bytes."""
    return tensor.dtype is torch.uint8 and tensor.dim() == 1 and tensor.numel() == tensor.untyped_storage().nbytes() > 0


def _equal(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right)
