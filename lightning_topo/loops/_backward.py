"""Detect the end of a backward pass, in a loop without hooks."""

from collections.abc import Callable

from torch import Tensor
from torch.autograd import Variable


def when_backward_ends(loss: Tensor, action: Callable[[], None]) -> None:
    """Call `action` at the end of every backward pass that goes through `loss`; gradients stay as they are.

    The autograd engine's own callback, which torch's FSDP uses in the same way; it has no public name.

    >>> import torch
    >>> x = torch.ones(1, requires_grad=True)
    >>> loss = (2 * x).sum()
    >>> when_backward_ends(loss, lambda: print("gradient", x.grad))
    >>> loss.backward()
    gradient tensor([2.])
    """
    if loss.requires_grad:
        engine = Variable._execution_engine  # pyright: ignore[reportAttributeAccessIssue]
        loss.register_hook(lambda _: engine.queue_callback(action))
