"""Detect that memory ran out, choose where to keep what is rarely used, and go over large tensors without copies."""

import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

IN_CACHE = 1 << 16
"""So many entries stay in a processor's cache, and take no new page of memory."""
_ON_DEVICE = 1 << 24

_SHARE_OF_PEAK = 0.1
_SHARE_OF_FREE = 0.25


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused, by its type or by what the allocators of the CPU, MPS and cuBLAS say.

    >>> is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory"))
    True
    """
    refused = re.search(r"(?i)can't allocate memory|not enough memory|out of memory|ALLOC_FAILED", str(error))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or refused is not None


def resting_device(device: torch.device, n_bytes: float = math.inf) -> torch.device:
    """Where to keep tensors of a device that are rarely used: the host's memory, which is larger.

    Apple's GPUs share that memory. On CUDA, `n_bytes` of tensors stay where they are if they take at most a tenth of
    the most that has been allocated so far, and a quarter of what is free: to fetch them would wait for the bus.

    >>> resting_device(torch.device("cuda:1")), resting_device(torch.device("mps"))
    (device(type='cpu'), device(type='mps'))
    """
    if device.type in ("cpu", "mps", "meta"):
        return device
    if device.type == "cuda" and n_bytes < math.inf:
        free = torch.cuda.mem_get_info(device)[0]
        if n_bytes <= min(_SHARE_OF_PEAK * torch.cuda.max_memory_allocated(device), _SHARE_OF_FREE * free):
            return device
    return torch.device("cpu")


def aside(device: torch.device) -> AbstractContextManager[object]:
    """Prepare a context for another thread, whose work on the device begins after this thread's work so far.

    On CUDA it then runs beside this thread's, in a stream of its own.
    """
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


def in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same entries of tensors of one shape, in parts that a processor's cache holds, along the first one's memory.

    What is computed of a part is small. On the CPU fresh memory for a whole result costs several times what writing to
    it does.

    >>> a = torch.arange(6.0).reshape(2, 3)
    >>> [(len(x), float((x - y).sum())) for x, y in in_parts(a, a + 1)]
    [(6, -6.0)]
    """
    first = tensors[0]
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    flat = [tensor.permute(order).flatten() for tensor in tensors]
    return zip(*(one.split(IN_CACHE if first.device.type == "cpu" else _ON_DEVICE) for one in flat), strict=True)


def largest_entry(tensor: Tensor) -> float:
    """The largest entry's size, without a copy of all; NaN if one is.

    >>> largest_entry(torch.tensor([1.0, -3.0]))
    3.0
    """
    if not tensor.numel():
        return 0.0
    if tensor.is_complex():
        return float(torch.linalg.vector_norm(tensor, torch.inf))
    low, high = tensor.aminmax()  # five times as fast on the CPU
    return float(torch.maximum(high, -low))


def largest_difference(tensor: Tensor, other: Tensor, factor: float) -> float:
    """max |tensor - factor * other|, without a copy of either; NaN if an entry is.

    >>> largest_difference(torch.tensor([1.0, -3.0]), torch.tensor([1.0, 1.0]), 2.0)
    5.0
    """
    found = [largest_entry(torch.sub(part, known, alpha=factor)) for part, known in in_parts(tensor, other)]
    return math.nan if any(one != one for one in found) else max(found, default=0.0)
