"""DTensors opened: a step of tensor parallel as what each process computes with its parts, and the collectives between.

torch lays classes of tensors over those that hold the values. A dispatch mode that leaves operators on them to the
classes themselves sees what these do.
"""

from torch import Tensor


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
