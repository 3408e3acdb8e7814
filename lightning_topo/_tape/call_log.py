"""The calls of a recorded step, in the order in which they ran."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_topo._tape.collectives import Collective, Pending, collective_of
from lightning_topo._tape.draws import SERIAL, Draws, drawn_by
from lightning_topo._tape.foreach import single_calls
from lightning_topo._tape.foreign import is_foreign, is_functional_collective
from lightning_topo._tape.host_reads import READS, SHAPED_BY_VALUES, read_by_numpy
from lightning_topo._tape.memory_map import MemoryMap
from lightning_topo._tape.program import Call, HostRead, Slot, functional_view, leaves, written_by

_NEWEST = 64
"""Storages among which to look for those that numpy was given, whenever it may have given something back."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A call that is about to run: its arguments with slots in place of tensors, and the tensors with their slots."""

    operator: Any
    args: tuple[Any, ...]
    encoded: tuple[Any, ...]
    encoded_kwargs: Mapping[str, Any]
    found: list[tuple[Tensor, int]]
    written: list[Tensor]
    grad: bool
    collective: Collective | None


class CallLog:
    """Writes down calls: `prepare` before each runs, `note` after it, with its result.

    `memory` knows which tensor is which. `name_gathered` is called where a parameter without a name is read, and gives
    it one. If the log `opens` DTensors, collectives between their local parts are calls like any other.
    """

    def __init__(
        self, memory: MemoryMap, *, opens: bool = False, name_gathered: Callable[[], None] | None = None
    ) -> None:
        self.calls: list[Call] = []
        self.memory = memory
        self.draws = Draws()
        self.host_reads: list[HostRead] = []
        self._opens, self._name_gathered = opens, name_gathered
        self._pending: dict[int, list[Pending]] = {}

    def prepare(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Prepared | None:
        """Look at a call before it runs; None if it is not noted. Constants that it would overwrite are copied.

        Raises `TypeError` if such a call cannot be noted.
        """
        if not hasattr(operator, "_schema"):
            raise TypeError("a higher-order operator")
        if torch.compiler.is_compiling():
            raise TypeError("a compilation")
        if any(is_lazy(leaf) for leaf in leaves(args)):
            return None  # nothing is computed from a parameter that has no values yet
        found: list[tuple[Tensor, int]] = []
        grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        pending = self._pending
        if operator._schema.name == "aten::_cudnn_rnn":  # its buffer of weights is the memory of those in its list
            args = (*args[:3], None, *args[4:])
        if operator._schema.name == "_c10d_functional::wait_tensor":
            self._pending = {}  # not complete yet
        encoded = self._encoded(args, found)
        encoded_kwargs = {key: self._encoded(value, found) for key, value in kwargs.items()} if kwargs else {}
        self._pending = pending
        written = written_by(operator, args, kwargs)
        for tensor in written:
            self.memory.about_to_write(tensor)
            self.draws.about_to_write(self.memory.storage_of(tensor))
        is_issued_again = self._opens and is_functional_collective(operator._schema.name)
        collective = None if is_issued_again else collective_of(operator, args, kwargs)
        return Prepared(operator, args, encoded, encoded_kwargs, found, written, grad, collective)

    def note(self, prepared: Prepared, result: Any) -> None:
        """Write down a call that has run."""
        operator, args, found, written = prepared.operator, prepared.args, prepared.found, prepared.written
        schema_name = operator._schema.name
        if self._opens and any(out is not None and is_foreign(out) for out in tensors_and_none(result)):
            return
        if schema_name == "aten::set_" and not isinstance(args[1] if len(args) > 1 else None, Tensor):
            self.memory.forget(result)  # a replay would write to this very storage: it is known by its memory
            return
        parts = schema_name in ("aten::detach", "aten::detach_")
        flows = prepared.grad and not parts and any(t.requires_grad for t, _ in found)
        if torch.Tag.inplace_view in operator.tags and (plain := functional_view(operator)) is not None:
            operator, written = plain, []
            self.memory.forget(result)  # the same tensor, but another view: it gets a slot of its own
            found = [(tensor, slot) for tensor, slot in found if tensor is not result]
        known = {id(tensor): slot for tensor, slot in found}
        outputs = []
        for out in tensors_and_none(result):
            if out is None:
                outputs.append(None)
            elif id(out) in known:
                outputs.append(known[id(out)])
            else:
                outputs.append(self.memory.new(out, connected=flows and _is_differentiable(out)))
        if schema_name == "aten::detach" and found and outputs[0] is not None:
            self.memory.detached_from[outputs[0]] = found[0][1]
        if schema_name in (*READS, *SHAPED_BY_VALUES):
            for _, slot in found[:1]:
                value = float(result) if isinstance(result, (int, float)) else None
                self.host_reads.append(HostRead(schema_name, slot, len(self.calls), value))
        if schema_name == "aten::lift_fresh":  # numbers of Python's or numpy's become a tensor
            self.host_reads += read_by_numpy(self.memory.handed_to_numpy(_NEWEST), self.calls)
        slots = tuple(dict.fromkeys(known[id(tensor)] for tensor in written))
        for tensor, slot in zip(written, (known[id(tensor)] for tensor in written), strict=True):
            if flows and _is_differentiable(tensor):
                self.memory.connect(slot)
        if prepared.collective is not None:
            for call, pending, storage in prepared.collective.recorded(known, outputs, result, next(SERIAL)):
                self.calls.append(call)
                self._pending.setdefault(self.memory.storage_of(storage), []).append(pending)
            return
        if schema_name == "aten::copy_":
            (to, _), (source, _), *_ = found
            if (copy := self.memory.copied_storage(to, source)) is not None:
                self.calls.append(copy)
                return
        drawn = drawn_by(operator, args, tensors_and_none(result))
        storage = None if drawn is None or id(drawn) in known else self.memory.storage_of(drawn)
        draw = None if drawn is None else self.draws.keep(drawn, storage)
        encoded, encoded_kwargs = prepared.encoded, prepared.encoded_kwargs
        self.calls += single_calls(Call(operator, encoded, encoded_kwargs, tuple(outputs), slots, prepared.grad, draw))

    def slot(self, tensor: Tensor) -> int:
        """The slot of a tensor that is read now.

        Raises `TypeError` for a tensor that has no values of its own, or a parameter that is none of the module's.
        """
        if is_foreign(tensor):
            raise TypeError(f"a tensor of type {type(tensor).__name__}")
        if self._name_gathered is not None and isinstance(tensor, nn.Parameter) and not self.memory.is_named(tensor):
            self._name_gathered()
            if not self.memory.is_named(tensor):
                raise TypeError("a parameter that is none of the module's")
        if self._pending:
            for pending in self._pending.pop(self.memory.storage_of(tensor), ()):
                name, value = pending.finished()
                self.draws.values[name] = value
        slot, aliases = self.memory.find(tensor)
        self.calls += aliases
        return slot

    def read_by_numpy(self) -> None:
        """Note which tensors numpy has read by now."""
        self.host_reads += read_by_numpy(self.memory.handed_to_numpy(), self.calls)

    def _encoded(self, value: Any, found: list[tuple[Tensor, int]]) -> Any:
        """Arguments with slots in place of tensors."""
        if isinstance(value, Tensor):
            slot = self.slot(value)
            found.append((value, slot))
            return Slot(slot)
        if isinstance(value, (list, tuple)):
            return tuple(self._encoded(part, found) for part in value)
        return value


def tensors_and_none(result: Any) -> list[Tensor | None]:
    """The leaves of a result that are tensors, or stand where a tensor would.

    >>> tensors_and_none([None, (torch.zeros(1),)])
    [None, tensor([0.])]
    """
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (list, tuple)):
        return [out for part in result for out in tensors_and_none(part)]
    return [None]


def _is_differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
