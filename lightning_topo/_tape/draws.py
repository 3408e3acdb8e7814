"""The random numbers of a call: which of its tensors holds them, and which kernels do not expose them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_topo._tape.attention_dropout import philox_rows
from lightning_topo._tape.formulas import named_arguments
from lightning_topo._tape.program import Call


def drawn_by(operator: Any, args: Sequence[Any], results: Sequence[Tensor | None]) -> Tensor | None:
    """The tensor that holds what a call drew from a generator; None if it drew nothing or does not expose it.

    Of fused attention it is a table of the numbers that the kernel began at (`attention_dropout`).

    >>> noise = torch.empty(3)
    >>> drawn_by(torch.ops.aten.normal_.default, (noise,), [noise]) is noise
    True
    >>> drawn_by(torch.ops.aten.relu.default, (noise,), [noise]) is None
    True
    """
    name = operator._schema.name
    if "scaled_dot_product" in name:
        return philox_rows(name, float(named_arguments(operator, args, {})["dropout_p"]), results)
    if torch.Tag.nondeterministic_seeded not in operator.tags or "_rnn" in name:
        return None
    if name.startswith("aten::rrelu_with_noise"):
        return args[1]
    tensors = [tensor for tensor in results if tensor is not None]
    return tensors[1] if name in ("aten::native_dropout", "aten::_fused_dropout") else tensors[0]


def hidden_draws(calls: Sequence[Call]) -> str:
    """Why a kernel's random numbers are not available; empty if there are none."""
    for call in calls:
        dropout = call.argument("dropout_p") if "_scaled_dot_product" in call.name and call.draw is None else None
        dropout = call.argument("dropout") if call.name == "aten::_cudnn_rnn" else dropout
        if dropout:
            return f"{call.name} does not expose its dropout mask"
    return ""
