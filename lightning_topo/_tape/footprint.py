"""How much memory the tensors of a recorded step take, from their layouts: nothing is run."""

import math

import torch

from lightning_topo._tape.program import Slot, Tape
from lightning_topo._tape.replay import HALF


def recorded_bytes(tape: Tape) -> int:
    """Bytes of all that the step's calls have made, each piece of memory once: at least its activations.

    >>> from torch import nn
    >>> from lightning_topo._tape import StepRecorder
    >>> model, recorder, x = nn.Linear(2, 4), StepRecorder(), torch.ones(3, 2)
    >>> recorder.begin(model)
    >>> recorder.loss(model(x).sum())
    >>> [tape] = recorder.end()
    >>> recorded_bytes(tape)  # three rows of four, and their sum
    52
    """
    return _made_bytes(tape, None)


_GRADIENT = 3
"""The graph of a gradient holds about this many times as much as the loss's own (measured 2.6 on a transformer)."""


def graph_bytes(tape: Tape, precision: torch.dtype | None) -> int:
    """Approximate bytes of the graph of the loss's gradient in a replay, with attention by its plain formula."""
    width = 8 if precision is torch.float64 else 4
    return _GRADIENT * (_made_bytes(tape, precision) + width * sum(_attention_entries(tape)))


def _made_bytes(tape: Tape, precision: torch.dtype | None) -> int:
    largest: dict[int, int] = {}
    given = {tape.storages[slot] for slot in (*tape.names, *tape.constants)}
    for call in tape.calls:
        for slot in call.outputs:
            if slot is not None and tape.storages[slot] not in given:
                layout = tape.layouts[slot]
                raised = precision is not None and (layout.dtype in HALF or layout.dtype is torch.float32)
                width = (precision if raised and precision is not None else layout.dtype).itemsize
                storage = tape.storages[slot]
                largest[storage] = max(largest.get(storage, 0), width * math.prod(layout.shape))
    return sum(largest.values())


def _attention_entries(tape: Tape) -> list[int]:
    """Of each fused attention: scores, masked scores and weights."""
    found = []
    for call in tape.calls:
        query, key = (call.argument(name) for name in ("query", "key"))
        if "_scaled_dot_product" in call.name and isinstance(query, Slot) and isinstance(key, Slot):
            shape = tape.layouts[query.index].shape
            found.append(3 * math.prod(shape[:-1]) * tape.layouts[key.index].shape[-2])
    return found
