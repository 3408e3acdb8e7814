"""What a loss descends from, out of all that a step has computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_topo._tape.memory_map import MemoryMap
from lightning_topo._tape.program import Call, alias, bits


def pruned(calls: Sequence[Call], outputs: Sequence[int], storages: Sequence[int]) -> tuple[Call, ...]:
    """The calls on which the outputs depend: those that make them, and those that write what is read later.

    A view is kept where it is read, or where something is written through it; that it shows a needed tensor's memory
    is not enough: `weight[k].norm()`, logged, is no part of the loss.
    """
    needed, read = set(outputs), {storages[slot] for slot in outputs}
    kept: list[Call] = []
    for call in reversed(calls):
        makes = any(slot in needed for slot in call.outputs if slot is not None)
        writes = any(slot in needed or storages[slot] in read for slot in call.writes)
        if makes or writes:
            kept.append(call)
            inputs = call.inputs
            needed.update(inputs)
            needed.update(call.writes)
            read.update(storages[slot] for slot in inputs)
    return tuple(reversed(kept))


def passed_by_gradient(calls: Sequence[Call], outputs: Sequence[int], storages: Sequence[int]) -> set[int]:
    """The slots by which a gradient may go from the outputs: not what is detached, or used without gradients.

    >>> from lightning_topo._tape.program import Slot
    >>> tanh, detach = torch.ops.aten.tanh.default, torch.ops.aten.detach.default
    >>> calls = [Call(tanh, (Slot(0),), {}, (1,)), Call(detach, (Slot(1),), {}, (2,))]
    >>> passed_by_gradient(calls, [1], [0, 1, 1]), passed_by_gradient(calls, [2], [0, 1, 1])
    ({0, 1}, {2})
    """
    stopping = [call for call in calls if _stops_gradient(call)]
    stopped = {slot for call in stopping for slot in call.outputs}
    passed, memory = set(outputs), {storages[slot] for slot in outputs if slot not in stopped}
    for call in reversed(calls):
        if _stops_gradient(call):
            continue
        makes = any(slot in passed for slot in call.outputs)
        if makes or any(slot in passed or storages[slot] in memory for slot in call.writes):
            passed.update(call.inputs)
            memory.update(storages[slot] for slot in call.inputs if slot not in stopped)
    return passed


def _stops_gradient(call: Call) -> bool:
    return not call.grad or call.operator in (alias, bits) or call.name == "aten::detach"


def with_transparent_functions(
    calls: Sequence[Call], functions: Mapping[int, str], connected: Sequence[bool], storages: Sequence[int]
) -> list[Call]:
    """The calls with gradients through those inside of autograd functions, which torch runs without.

    What is written into the memory of a value inside counts with it: a function may fill its result part by part.

    That is right where a function's backward pass is the derivative of its forward pass (activation checkpointing,
    fused kernels), and wrong for straight-through estimators: comparing gradients shows it.
    """
    if not functions:
        return list(calls)
    inside, memory, result = set(functions), {storages[slot] for slot in functions}, []
    for call in reversed(calls):
        makes = any(slot in inside for slot in call.outputs if slot is not None)
        if not call.grad and (makes or any(slot in inside or storages[slot] in memory for slot in call.writes)):
            found = {slot for slot in (*call.inputs, *call.writes) if not connected[slot] or slot in functions}
            inside |= found
            memory |= {storages[slot] for slot in found}
            call = replace(call, grad=True)
        result.append(call)
    return result[::-1]


@dataclass(frozen=True, slots=True)
class Born:
    """Parameters and buffers that the step itself has made, as lazy layers do."""

    names: dict[int, tuple[str, ...]] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    trainable: dict[str, bool] = field(default_factory=dict)


def with_parameters_born_in_the_step(
    calls: Sequence[Call], memory: MemoryMap, named: Mapping[str, Tensor]
) -> tuple[list[Call], Born]:
    """The calls without those that initialise such parameters, which are named slots from the beginning instead."""
    born = Born()
    known = {name for names in memory.names().values() for name in names}
    storages: set[int] = set()
    for name, tensor in named.items():
        slot = None if name in known else memory.known_slot(tensor)
        if slot is None:
            continue
        born.names[slot] = (*born.names.get(slot, ()), name)
        born.values[slot] = tensor.detach().clone()
        if isinstance(tensor, torch.nn.Parameter):
            born.trainable[name] = tensor.requires_grad
        storages.add(memory.storages[slot])
    if not storages:
        return list(calls), born

    def initialises(call: Call) -> bool:
        return any(slot in born.names for slot in call.outputs if slot is not None) or any(
            memory.storages[slot] in storages for slot in call.writes
        )

    return [call for call in calls if not initialises(call)], born
