"""Running a function of the user's on their module without leaving a trace in it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def preserved(module: nn.Module, seed: int) -> Iterator[None]:
    """Buffers, modes and every random state are afterwards as before, also where the body raises.

    Inside, torch's random state is that of `seed`.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    modes = [(m, m.training) for m in module.modules()]
    generators = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that user code draws from
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(generators[0])
            np.random.set_state(generators[1])  # noqa: NPY002
            for m, mode in modes:
                m.training = mode
            for buffer, copy in buffers:
                _restore(buffer, copy)


@torch.no_grad()
def _restore(buffer: Tensor, copy: Tensor) -> None:
    if not torch.equal(buffer, copy):
        buffer.copy_(copy)
