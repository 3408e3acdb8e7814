"""Dropout inside of fused attention on a GPU: which weights a kernel kept, by the numbers that it began at.

A kernel draws from Philox, a generator that gives the same numbers again from a seed and an offset, and returns both
in place of its mask. Here they are kept as one row for each sample: (seed, offset, which sample, of how many). So a
part of the samples has a part of the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from lightning_topo._tape.program import Tape

EFFICIENT = "aten::_scaled_dot_product_efficient_attention"
FLASH = "aten::_scaled_dot_product_flash_attention"


def philox_rows(name: str, dropout: float, results: Sequence[Tensor | None]) -> Int64[Tensor, "n 4"] | None:
    """The rows of a call of a fused attention, from its results; None where it drops nothing or does not tell.

    On the device of the numbers, without waiting for it.
    """
    if not dropout or results[0] is None:
        return None
    if name == EFFICIENT:
        seed, offset = results[2:4]
    elif name == FLASH and results[6] is not None and results[6].shape == (2,):
        seed, offset = results[6].view(torch.int64)
    else:
        return None
    if seed is None or offset is None:
        return None
    n = len(results[0])
    numbers = torch.stack([seed, offset]).expand(n, 2)
    samples = torch.arange(n, device=numbers.device)
    return torch.stack([numbers[:, 0], numbers[:, 1], samples, torch.full_like(samples, n)], 1)


def kept_weights(name: str, args: Mapping[str, Any], rows: Int64[Tensor, "b 4"]) -> Bool[Tensor, "b h t s"]:
    """Which of the attention's weights were not dropped, for the samples of these rows.

    `args` are the call's arguments by name; of the tensors only shapes and the device count. Flash attention is asked
    again on zeros in half precision, since it takes no other: the mask is the same.
    """
    seed, offset, _, n = rows[0].tolist()
    query, key, dropout = args["query"], args["key"], float(args["dropout_p"])
    shape = (n, query.shape[1], query.shape[2], key.shape[2])
    if name == EFFICIENT:
        numbers = torch.empty(shape, device=query.device)
        torch.ops.aten._fill_mem_eff_dropout_mask_(numbers, dropout, seed, offset)
        kept = numbers > dropout
    else:
        half = query.dtype if query.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
        q, k = (x.new_zeros((n, *x.shape[1:]), dtype=half) for x in (query, key))
        with torch.no_grad(), generator_at(rows, query.device):
            shown = torch.ops.aten._scaled_dot_product_flash_attention(q, k, k, dropout, False, True)[8]
        kept = shown[:, :, : shape[2], : shape[3]] >= 0  # what was dropped is negative
    return kept[rows[:, 2].to(kept.device)]


def is_whole(rows: Int64[Tensor, "b 4"]) -> bool:
    """Whether the rows are those of all samples, so that the kernel itself draws the same again."""
    return bool(len(rows) and rows[0, 3] == len(rows))


def without_attention_dropout(tape: Tape) -> Tape:
    """The tape whose fused attention keeps all weights: heads and what they drop are not exchanged together there."""
    dropping = {call.draw for call in tape.calls if call.draw is not None and call.name in (EFFICIENT, FLASH)}
    if not dropping:
        return tape
    calls = tuple(replace(call, draw=None) if call.draw in dropping else call for call in tape.calls)
    return tape.replaced(calls=calls, draws={name: draw for name, draw in tape.draws.items() if name not in dropping})


@contextmanager
def generator_at(rows: Int64[Tensor, "b 4"], device: torch.device) -> Iterator[None]:
    """The device's generator as it was when the kernel drew; afterwards as it is now, whatever happens."""
    generator = torch.cuda.default_generators[device.index]
    was = generator.get_state()
    try:
        generator.set_state(rows[0, :2].cpu().view(torch.uint8))
        yield
    finally:
        generator.set_state(was)
