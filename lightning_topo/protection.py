"""Running a module's own code without leaving a trace in it."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Whatever happens inside, the module is afterwards as it was: buffers, metrics, counters, queues, hooks.

    Attributes of the module and of everything below it are put back; tensors and containers that were changed in
    place get their contents back, containers one level deep. Parameters are left alone: nothing here may step.
    """
    saved = [(m, dict(m.__dict__), _contents(m.__dict__)) for m in module.modules()]
    saved_buffers = [_snapshot(buffer) for buffer in module.buffers()]
    try:
        yield
    finally:
        for owner, attributes, restorers in saved:
            owner.__dict__.clear()
            owner.__dict__.update(attributes)
            for restore in restorers:
                restore()
        for restore in saved_buffers:
            restore()


def _contents(attributes: dict[str, Any]) -> list[Callable[[], None]]:
    return [_snapshot(value) for value in attributes.values() if isinstance(value, _MUTABLE)]


_MUTABLE = (Tensor, list, dict, set, deque)


def _snapshot(value: Any) -> Callable[[], None]:
    """A function that gives a mutable value its present contents back."""
    if not isinstance(value, Tensor):
        return partial(_refill, value, value.copy())
    if value.is_inference() or value.is_meta:  # cannot be changed in place, or has no contents
        return lambda: None
    return partial(_restore, value, value.detach().clone())


def _restore(tensor: Tensor, copy: Tensor) -> None:
    # Not by the version counter: kernels such as batch_norm's write without counting.
    if not torch.equal(tensor, copy):
        with torch.no_grad():
            tensor.copy_(copy)


def _refill(container: Any, items: Any) -> None:
    container.clear()
    if isinstance(container, list | deque):
        container.extend(items)
    else:
        container.update(items)
