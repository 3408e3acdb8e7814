"""Tensors with a dispatch of their own, which torch lays over those that hold the values.

They cannot be recorded. A dispatch mode that leaves operators on DTensors to these sees what each process computes with
its parts, and the collectives between: so a step of tensor parallel is recorded.
"""

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

_PLAIN = torch._C._disabled_torch_dispatch_impl


def is_foreign(tensor: Tensor) -> bool:
    """Whether the tensor has a dispatch of its own (a DTensor, a FakeTensor, a quantized one).

    >>> is_foreign(torch.ones(1))
    False
    """
    return getattr(type(tensor), "__torch_dispatch__", _PLAIN) is not _PLAIN


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor can be recorded: it has no dispatch of its own, and has a shape."""
    return not is_foreign(tensor) and not is_lazy(tensor)


def opened_classes() -> tuple[type, ...]:
    """The classes that lie over local tensors."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.distributed.tensor import DTensor

    return DTensor, AsyncCollectiveTensor


def on_this_process(loss: Tensor) -> Tensor:
    """The local tensor that holds a loss; raise TypeError where this process has only a part of it."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.distributed.tensor import DTensor

    if isinstance(loss, DTensor):
        if not all(placement.is_replicate() for placement in loss.placements):
            raise TypeError("a loss that is spread over processes")
        loss = loss.to_local()
    return loss.wait() if isinstance(loss, AsyncCollectiveTensor) else loss


def is_functional_collective(name: str) -> bool:
    """Whether the operator of this name returns what it has received, so that it can be called again.

    >>> is_functional_collective("_c10d_functional::all_reduce")
    True
    """
    return name.startswith("_c10d_functional::")
