"""Memory that runs out."""

import re

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused, by its type or by what the allocators of the CPU, MPS and cuBLAS say.

    >>> is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory"))
    True
    """
    said = re.search(r"(?i)can't allocate memory|not enough memory|out of memory|ALLOC_FAILED", str(error))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or said is not None
