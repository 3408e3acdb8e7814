"""Running a module's own code without leaving a trace in it."""

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    if isinstance(value, Tensor):
        if value.is_inference() or value.is_meta:  # cannot be changed in place, or has no contents
            return lambda: None
        copy = value.detach().clone()

        def restore() -> None:
            # Not by the version counter: kernels such as batch_norm's write without counting.
            if not torch.equal(value, copy):
                with torch.no_grad():
                    value.copy_(copy)

        return restore

    items = value.copy()

    def refill() -> None:
        value.clear()
        if isinstance(value, list | deque):
            value.extend(items)
        else:
            value.update(items)

    return refill


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused, by its type or by what the allocators of the CPU, MPS and cuBLAS say."""
    said = re.search(r"(?i)can't allocate memory|not enough memory|out of memory|ALLOC_FAILED", str(error))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or said is not None
