"""The tape of a loss, out of all that a step has computed up to there."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo._tape.draws import hidden_draws
from lightning_topo._tape.host_reads import leaned_on
from lightning_topo._tape.memory_map import MemoryMap
from lightning_topo._tape.program import Call, HostRead, Tape
from lightning_topo._tape.pruning import pruned, with_parameters_born_in_the_step, with_transparent_functions


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording holds: calls, the memory they work on, what they drew, and what the host has read.

    `named` are the module's parameters and buffers as they are now, `buffers` the names of the latter. `held` are the
    storages that were plain attributes of modules from the beginning, and `losses` the slots of earlier losses.
    """

    calls: Sequence[Call]
    memory: MemoryMap
    draws: Mapping[str, Tensor]
    host_reads: Sequence[HostRead]
    named: Mapping[str, Tensor]
    buffers: frozenset[str]
    held: frozenset[int] = frozenset()
    losses: frozenset[int] = frozenset()


def closed_tape(
    recorded: Recorded,
    slots: Sequence[int],
    outputs: Sequence[Tensor],
    shards: Collection[int],
    *,
    scale: float,
    n_samples: int | None,
) -> Tape:
    """The tape of these outputs, in these slots: what they descend from, with values of its own.

    It has an obstacle if it reads memory that was freed since, or lies in the storages of `shards`.
    """
    memory = recorded.memory
    calls, born = with_parameters_born_in_the_step(recorded.calls, memory, recorded.named)
    calls = with_transparent_functions(calls, memory.functions, memory.connected, memory.storages)
    names, values = memory.names() | born.names, memory.values() | born.values
    calls = pruned(calls, slots, memory.storages) if slots else tuple(calls)
    used = {slot for call in calls for slot in (*call.inputs, *call.outputs) if slot is not None} | set(slots)
    constants = {slot: value for slot, value in memory.constants().items() if slot in used and slot not in names}
    if any(map(_is_freed, constants.values())):
        return empty_tape("something that it reads was freed while it ran", scale)
    if any(_storage(value) in shards for value in constants.values()):
        return empty_tape("it reads shards of parameters themselves", scale)
    tape = Tape(
        calls=tuple(calls),
        outputs=tuple(slots),
        names=names,
        values=values,
        constants=constants,
        draws={call.draw: recorded.draws[call.draw] for call in calls if call.draw is not None},
        layouts=tuple(memory.layouts),
        storages=tuple(memory.storages),
        trainable=memory.trainable() | born.trainable,
        buffers=recorded.buffers,
        held=frozenset(slot for slot, value in constants.items() if _storage(value) in recorded.held),
        recorded=tuple(output.detach().clone() for output in outputs),
        scale=scale,
        n_samples=n_samples or _leading_size(constants.values()),
        functions={slot: name for slot, name in memory.functions.items() if slot in used},
        host_reads=leaned_on(recorded.host_reads, recorded.calls, calls, slots, names, memory, recorded.losses),
        gradient_obstacle=hidden_draws(calls),
    )
    return tape.owning_its_constants()


def empty_tape(obstacle: str, scale: float = 1.0) -> Tape:
    """The tape of a loss that could not be recorded, and why."""
    return Tape((), (), {}, {}, {}, {}, (), (), {}, scale=scale, obstacle=obstacle)


def _storage(tensor: Tensor) -> int | None:
    """What identifies the storage of a tensor that lies in one."""
    return tensor.untyped_storage()._cdata if _is_strided(tensor) else None


def _is_strided(tensor: Tensor) -> bool:
    """Whether a tensor lies in one storage."""
    return tensor.layout is torch.strided


def _is_freed(tensor: Tensor) -> bool:
    """Whether the memory of a tensor is not there any more, as FSDP frees that of whole parameters."""
    if not _is_strided(tensor) or not tensor.numel():
        return False
    last = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage().nbytes() < (last + 1) * tensor.element_size()


def _leading_size(constants: Iterable[Tensor]) -> int:
    return next((len(tensor) for tensor in constants if tensor.dim() > 0), 1)
