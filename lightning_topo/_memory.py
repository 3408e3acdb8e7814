"""Detect that memory ran out, and choose where to keep tensors that are rarely used."""

import math
import re
from contextlib import AbstractContextManager, nullcontext

import torch

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
