"""The random numbers of a call: which of its tensors holds them, and which kernels do not expose them."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_topo._protection import kept_random_state
from lightning_topo._tape.attention_dropout import EFFICIENT, FLASH, philox_rows
from lightning_topo._tape.formulas import named_arguments
from lightning_topo._tape.program import Call, Tape

SERIAL = itertools.count()
"""Draws have names of their own in all tapes."""


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
    if name in (EFFICIENT, FLASH):
        return philox_rows(name, float(named_arguments(operator, args, {})["dropout_p"]), results)
    if torch.Tag.nondeterministic_seeded not in operator.tags or "_rnn" in name or "scaled_dot_product" in name:
        return None
    if name.startswith("aten::rrelu_with_noise"):
        return args[1] if named_arguments(operator, args, {})["training"] else None
    tensors = [tensor for tensor in results if tensor is not None]
    return tensors[1] if name in ("aten::native_dropout", "aten::_fused_dropout") else tensors[0]


class Draws:
    """What the calls of a step drew from generators, by names of their own in all tapes. `storage` is an identity."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self._lying_in: dict[int, list[str]] = {}

    def keep(self, drawn: Tensor, storage: int | None) -> str:
        """Keep what was drawn, and return its name; a copy where it lies in memory that the step had (None)."""
        name, value = f"@{next(SERIAL)}", drawn.detach()
        self.values[name] = value.clone() if storage is None else value
        if storage is not None:
            self._lying_in.setdefault(storage, []).append(name)
        return name

    def about_to_write(self, storage: int) -> None:
        """Copy what lies in a storage that is going to be written."""
        for name in self._lying_in.pop(storage, ()):
            self.values[name] = self.values[name].clone()


class GammaAsDrawn(torch.autograd.Function):
    """What was drawn from a gamma distribution, with the gradient in its shape that torch gives it.

    The gradient has no derivative of its own: asking for it raises torch's error.
    """

    @staticmethod
    def forward(ctx: Any, shape: Tensor, drawn: Tensor) -> Tensor:
        ctx.save_for_backward(shape, drawn)
        return drawn.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shape, drawn = ctx.saved_tensors
        return grad * torch.ops.aten._standard_gamma_grad(shape, drawn), None


class DirichletAsDrawn(torch.autograd.Function):
    """What was drawn from a Dirichlet distribution, with the gradient that `torch.distributions` gives it."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, drawn: Tensor) -> Tensor:
        ctx.save_for_backward(concentration, drawn)
        return drawn.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        concentration, drawn = ctx.saved_tensors
        total = concentration.sum(-1, keepdim=True).expand_as(concentration)
        slope = torch.ops.aten._dirichlet_grad(drawn, concentration, total)
        return slope * (grad - (drawn * grad).sum(-1, keepdim=True)), None


def hidden_draws(calls: Sequence[Call]) -> str:
    """Why a kernel's random numbers are not available; empty if there are none."""
    for call in calls:
        dropout = call.argument("dropout_p") if "_scaled_dot_product" in call.name and call.draw is None else None
        dropout = call.argument("dropout") if call.name == "aten::_cudnn_rnn" else dropout
        if dropout:
            return f"{_kernel(call)} does not tell what its dropout has dropped"
    return ""


def _kernel(call: Call) -> str:
    """The name of a kernel that hides its dropout, with what helps."""
    if call.name == "aten::_scaled_dot_product_cudnn_attention":
        return "cuDNN's attention (torch.backends.cuda.enable_cudnn_sdp(False) lets torch take another one)"
    return call.name


def generators_kept(*tapes: Tape) -> AbstractContextManager[None]:
    """All global generators, afterwards as now, if calls of these tapes may draw when they run again or backwards.

    A kernel that does not tell what it drew draws anew; so may operators of other packages. A generator that such an
    operator holds by itself cannot be found.
    """
    return kept_random_state() if any(_may_draw(call) for tape in tapes for call in tape.calls) else nullcontext()


def _may_draw(call: Call) -> bool:
    return _operator_may_draw(call.operator) if call.draw is None else "_scaled_dot_product" in call.name


@cache  # a proof asks for every call in each of its replays
def _operator_may_draw(operator: Any) -> bool:
    schema = getattr(operator, "_schema", None)
    is_theirs = schema is not None and not schema.name.startswith(("aten::", "prims::"))
    return is_theirs or torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ())
