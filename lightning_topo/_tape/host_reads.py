"""Values that a step reads from tensors into Python, and whether its loss may depend on them.

An operator tells of most reads (`item`, `bool`, `nonzero`). `tolist` and `numpy` on the CPU call none. Only a function
mode would see them, and under one torch computes some layers by other kernels, with other bits. So what is known of
them is what they leave behind: numpy fixes the size of a storage, and positions or decisions that no operator reads
were hardly computed for nothing. A floating tensor that is listed and computed with as well leaves no trace. One that
is detached right after it was made looks like what autograd saves.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_topo._tape.memory_map import MemoryMap
from lightning_topo._tape.program import Call, HostRead, Layout, leaves

READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")
SHAPED_BY_VALUES = (
    "aten::nonzero",
    "aten::nonzero_static",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
)
"""Operators whose outputs have shapes that depend on values."""
_COMMON = frozenset({0.0, 1.0, 2.0})
"""Numbers that a program has of its own anyway."""


def read_by_numpy(slots: Sequence[int], calls: Sequence[Call]) -> list[HostRead]:
    """The reads of slots that numpy was given: at some time after the call that made each."""
    made = {slot: position for position, call in enumerate(calls if slots else (), 1) for slot in call.outputs}
    return [HostRead("numpy", slot, made.get(slot, 0)) for slot in slots]


def leaned_on(
    reads: Sequence[HostRead],
    calls: Sequence[Call],
    kept: Sequence[Call],
    outputs: Sequence[int],
    names: Mapping[int, tuple[str, ...]],
    memory: MemoryMap,
    losses: Collection[int] = (),
) -> tuple[HostRead, ...]:
    """The host reads of parameters on which the outputs may depend, with what no operator reads.

    That is all that is read before the outputs are there. Of later reads, as of a metric, a number that comes back as
    an argument, and a shape. What is computed from earlier `losses` alone is as constant as these are proved to be: a
    step that logs one of two losses reads no neurons.
    """
    decided = _decided(calls, outputs)
    operators = {call.name for call in kept}
    numbers = {abs(float(x)) for call in kept for x in leaves((call.args, call.kwargs)) if _is_number(x)} - _COMMON

    def may_matter(read: HostRead) -> bool:
        shaped = read.operator in SHAPED_BY_VALUES and read.operator in operators
        return read.n_calls < decided or shaped or (read.value is not None and abs(read.value) in numbers)

    found = [read for read in reads if may_matter(read)]
    read_by_operators = {slot for call in calls for slot in call.inputs}.union(outputs, memory.handed_out)
    found += _unread(calls[:decided], read_by_operators, memory.layouts)
    return tuple(read for read in _with_origins(found, calls, names, memory.storages, losses) if read.params)


def _decided(calls: Sequence[Call], outputs: Sequence[int]) -> int:
    """The number of calls after which the outputs are there, but for a division by a number.

    Lightning divides the loss that a step returns, when the step has read all that it logs.
    """
    last = 0
    for slot in outputs:
        at = _maker(calls, slot, len(calls))
        while at >= 0 and calls[at].name == "aten::div" and len(calls[at].inputs) == 1:
            at = _maker(calls, calls[at].inputs[0], at)
        last = max(last, at + 1)
    return last


def _maker(calls: Sequence[Call], slot: int, before: int) -> int:
    """The last call before a position that makes or writes the slot; -1 where none does."""
    makers = (i for i in range(before - 1, -1, -1) if slot in calls[i].outputs or slot in calls[i].writes)
    return next(makers, -1)


def _unread(calls: Sequence[Call], read: set[int], layouts: Sequence[Layout]) -> Iterator[HostRead]:
    """What no operator reads: integers and decisions, and what was detached or brought to the host."""
    just_made: set[int] = set()
    for position, call in enumerate(calls, 1):
        made = [slot for slot in call.outputs if slot is not None]
        is_detaching = call.name == "aten::detach"
        # Autograd detaches what it saves of a result, at once. Any other detaching is the step's own, or `numpy`'s.
        is_saving = is_detaching and not just_made.isdisjoint(call.inputs)
        just_made = just_made - set(call.inputs) if is_saving else set(made)
        if call.writes or not made or is_saving or not read.isdisjoint(made):
            continue
        layout = layouts[made[-1]]
        is_brought = layout.device.type == "cpu" and any(layouts[s].device.type != "cpu" for s in call.inputs)
        if not (layout.dtype.is_floating_point or layout.dtype.is_complex) or is_detaching or is_brought:
            yield HostRead(call.name, made[-1], position, is_certain=False)


def _with_origins(
    reads: Sequence[HostRead],
    calls: Sequence[Call],
    names: Mapping[int, tuple[str, ...]],
    storages: Sequence[int],
    losses: Collection[int],
) -> Iterator[HostRead]:
    """The reads with the parameters that they descend from but for losses, found in one pass over the calls."""
    if not reads:
        return
    bits = {slot: 1 << i for i, slot in enumerate(names)}
    written: dict[int, int] = {}
    at = 0
    for read in sorted(reads, key=lambda read: read.n_calls):
        for call in calls[at : read.n_calls]:
            source = 0
            for slot in call.inputs:
                source |= bits.get(slot, 0) | written.get(storages[slot], 0)
            for slot in call.outputs:
                if slot is not None and slot not in losses:
                    bits[slot] = bits.get(slot, 0) | source
            for slot in call.writes:
                written[storages[slot]] = written.get(storages[slot], 0) | source
        at = max(at, read.n_calls)
        origin = bits.get(read.slot, 0) | written.get(storages[read.slot], 0)
        params = frozenset(whose[0] for i, whose in enumerate(names.values()) if origin >> i & 1)
        yield replace(read, params=params)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
