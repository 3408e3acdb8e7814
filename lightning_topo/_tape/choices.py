"""Shapes that depend on values, made constants: for tapes whose other values lead to shapes they cannot take."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_topo._tape.host_reads import SHAPED_BY_VALUES
from lightning_topo._tape.program import Call, Slot, Tape
from lightning_topo._tape.replay import replay


def with_choices_as_constants(tape: Tape) -> Tape:
    """The tape with the outputs of `nonzero` and the like, and masks that index, as they were in the step.

    One replay at the recorded values, without gradients. Raises `CannotReplay`.
    """
    chosen: set[int] = set()
    for call in tape.calls:
        if call.name in SHAPED_BY_VALUES:
            chosen |= {slot for slot in call.outputs if slot is not None and not _floats(tape, slot)}
        elif call.name in ("aten::index", "aten::index_put", "aten::index_put_"):
            indices = call.argument("indices") or ()
            chosen |= {part.index for part in indices if isinstance(part, Slot) and not _floats(tape, part.index)}
    chosen = {slot for slot in chosen if slot not in tape.constants and slot not in tape.names}
    if not chosen:
        return tape
    wanted = sorted(chosen)
    with torch.no_grad():
        values: list[Tensor] = replay(tape.replaced(outputs=tuple(wanted)), {}, formulas=False)

    def makes_choice(call: Call) -> bool:
        return any(slot in chosen for slot in call.outputs if slot is not None)

    calls = []
    for call in tape.calls:
        if makes_choice(call):
            left = tuple(None if slot in chosen else slot for slot in call.outputs)
            if all(slot is None for slot in left) and not call.writes:
                continue
            call = replace(call, outputs=left)
        calls.append(call)
    return tape.replaced(calls=tuple(calls), constants={**tape.constants, **dict(zip(wanted, values, strict=True))})


def _floats(tape: Tape, slot: int) -> bool:
    return tape.layouts[slot].dtype.is_floating_point
