"""Communication between processes, as a tape keeps it: what came from elsewhere is recorded, and nothing is sent again.

A sum over processes is this process's part plus a recorded remainder, a gathered tensor holds this process's part
among recorded ones; anything else that was received is a constant.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_topo._tape.program import HIDDEN_WRITES, Call, Slot, Tape, argument, leaves


def plus_remainder(part: Tensor, *, remainder: Tensor) -> Tensor:
    """A sum over processes: this one's part, and what the others added."""
    return part + remainder


def plus_remainder_(part: Tensor, *, remainder: Tensor) -> Tensor:
    """The same in place."""
    return part.add_(remainder)


def gathered(part: Tensor, *, received: Tensor, index: Any) -> Tensor:
    """The result of a gather: this process's part at its place among the received ones."""
    place = place_of(index)
    if place is None:
        return received.clone()
    rows = part.reshape(1) if part.dim() == 0 else part
    parts = list(received.reshape(-1, *rows.shape[1:]).split(len(rows)))
    return torch.cat([*parts[:place], rows, *parts[place + 1 :]]).view_as(received)


def gathered_(out: Tensor, part: Tensor, *, received: Tensor, index: Any) -> Tensor:
    """The same in place."""
    return out.copy_(gathered(part, received=received, index=index))


def received_(out: Tensor, *, received: Tensor) -> Tensor:
    """What was received, in place; nothing of this process is in it."""
    return out.copy_(received)


def gathered_part_(out: Tensor, part: Tensor, *, received: Tensor, mine: bool) -> Tensor:
    """One part of a gathered list: this process's own, or what another one sent."""
    return out.copy_(part if mine else received)


RECORDED = frozenset({plus_remainder, plus_remainder_, gathered, gathered_, received_, gathered_part_})
"""The operators that stand for collectives."""


def receives(tape: Tape) -> bool:
    """Whether some of what a tape computes with came from other processes."""
    return any(call.operator in RECORDED for call in tape.calls)


@dataclass(slots=True)
class Pending:
    """A result that is complete only once somebody has waited for it, and so reads it."""

    key: str
    read: Callable[[], Tensor]
    note: Callable[[Tensor], None] | None = None

    def finished(self) -> tuple[str, Tensor]:
        """The name and the recorded part of the result."""
        value = self.read()
        if self.note is not None:
            self.note(value)
        return self.key, value


@dataclass(slots=True)
class Collective:
    """One collective operator, before it runs: what this process gives."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    own: list[Tensor]
    copies: list[Tensor]

    def recorded(
        self, known: Mapping[int, int], outputs: Sequence[int | None], result: Any, n_calls: int
    ) -> Iterator[tuple[Call, Pending, Tensor]]:
        """The calls that stand for it, with what has to be read once it is complete."""
        if self.name.startswith("c10d::"):
            yield from self._in_place(known, n_calls)
        else:
            yield from self._functional(known, outputs, result, n_calls)

    def _in_place(self, known: Mapping[int, int], n_calls: int) -> Iterator[tuple[Call, Pending, Tensor]]:
        for position, out in enumerate(_written(self.name, self.args, self.kwargs)):
            key, slot = f"@{n_calls}.{position}", known[id(out)]
            if self.name.startswith("c10d::allreduce") and out.is_floating_point():
                own = self.copies[position]
                pending = Pending(key, lambda out=out, own=own: out.detach() - own)
                call = Call(plus_remainder_, (Slot(slot),), {}, (slot,), (slot,), False, key)
            elif self.name == "c10d::_allgather_base_":
                part, index = self.own[0], _Place(self.copies[0])
                pending = Pending(key, lambda out=out: out.detach().clone(), index.note)
                call = Call(
                    gathered_, (Slot(slot), Slot(known[id(part)])), {"index": index}, (slot,), (slot,), False, key
                )
            elif self.name == "c10d::allgather_" and out.shape == self.own[0].shape:
                part = self.own[0]
                pending = Pending(key, lambda out=out: out.detach().clone())
                args = (Slot(slot), Slot(known[id(part)]))
                call = Call(gathered_part_, args, {"mine": _is_mine(position)}, (slot,), (slot,), False, key)
            else:
                pending = Pending(key, lambda out=out: out.detach().clone())
                call = Call(received_, (Slot(slot),), {}, (slot,), (slot,), False, key)
            yield call, pending, out

    def _functional(
        self, known: Mapping[int, int], outputs: Sequence[int | None], result: Any, n_calls: int
    ) -> Iterator[tuple[Call, Pending, Tensor]]:
        outs = [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]
        for position, (out, slot) in enumerate(zip(outs, outputs, strict=True)):
            key, own = f"@{n_calls}.{position}", self.own[position]
            if "all_reduce" in self.name and out.is_floating_point():
                copy = self.copies[position]
                pending = Pending(key, lambda out=out, copy=copy: out.detach() - copy)
                call = Call(plus_remainder, (Slot(known[id(own)]),), {}, (slot,), (), False, key)
            elif "all_gather" in self.name:
                index = _Place(self.copies[position])
                pending = Pending(key, lambda out=out: out.detach().clone(), index.note)
                call = Call(gathered, (Slot(known[id(own)]),), {"index": index}, (slot,), (), False, key)
            else:
                pending = Pending(key, lambda out=out: out.detach().clone())
                call = Call(gathered, (Slot(known[id(own)]),), {"index": None}, (slot,), (), False, key)
            yield call, pending, out


class _Place:
    """The index of this process's part among the gathered ones, known once they are there."""

    def __init__(self, part: Tensor) -> None:
        self.part: Tensor | None = part
        self.index: int | None = None

    def note(self, received: Tensor) -> None:
        part, self.part = self.part, None
        if part is None or not part.dim():
            return
        parts = received.reshape(-1, *part.shape[1:]).split(part.shape[0])
        self.index = next((i for i, other in enumerate(parts) if torch.equal(other, part)), None)


def place_of(index: Any) -> int | None:
    """The index that a call's `index` stands for."""
    return index.index if isinstance(index, _Place) else index


def collective_of(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Collective | None:
    """What is known about a collective before it runs; None if the operator is not a collective."""
    name = operator._schema.name
    if not name.startswith(("c10d::", "_c10d_functional::")):
        return None
    if name == "_c10d_functional::wait_tensor":
        return None
    if name.startswith("c10d::"):
        written = _written(name, args, kwargs)
        own = written if name.startswith("c10d::allreduce") else _inputs(operator, args, kwargs)
    else:
        own = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return Collective(name, args, kwargs, own, [tensor.detach().clone() for tensor in own])


def _written(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    if name not in HIDDEN_WRITES:
        return []
    value = argument(args, kwargs, 0, HIDDEN_WRITES[name][0])
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def _inputs(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    for position, declared in enumerate(operator._schema.arguments):
        if declared.name in ("input_tensors", "input_tensor", "input", "inputs"):
            value = argument(args, kwargs, position, declared.name)
            return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
    return []


def _is_mine(position: int) -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_rank() == position
