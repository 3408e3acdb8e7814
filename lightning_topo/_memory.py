"""Detect that memory ran out, and choose where to keep tensors that are rarely used."""

import re

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused, by its type or by what the allocators of the CPU, MPS and cuBLAS say.

    >>> is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory"))
    True
    """
    refused = re.search(r"(?i)can't allocate memory|not enough memory|out of memory|ALLOC_FAILED", str(error))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or refused is not None


def resting_device(device: torch.device) -> torch.device:
    """Where to keep tensors of a device that are rarely used: the host's memory, which is larger.

    Apple's GPUs share that memory.

    >>> resting_device(torch.device("cuda:1")), resting_device(torch.device("mps"))
    (device(type='cpu'), device(type='mps'))
    """
    return device if device.type in ("cpu", "mps", "meta") else torch.device("cpu")
