"""Run a model on other tensors and leave no trace of it: the one place where the model is executed."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from lightning_topo.neurons.group import clean_name
from lightning_topo.protection import unchanged

Run = Callable[[nn.Module], Any]


class _Runner(nn.Module):
    """Makes any call on a model look like a forward pass, so that `functional_call` can swap its tensors."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self) -> Any:
        return self.run(self.model)


def run_with(model: nn.Module, run: Run, tensors: Mapping[str, Tensor]) -> Any:
    """`run(model)` with its parameters and buffers replaced, by their clean names."""
    raw = {clean_name(name): name for name, _ in _all_tensors(model)}
    state = {f"model.{raw[name]}": tensor for name, tensor in tensors.items() if name in raw}
    return functional_call(_Runner(model, run), state, (), tie_weights=True)


def named_state(model: nn.Module) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Parameters and buffers by clean name; what is shared under several names comes under its first."""
    parameters = {clean_name(name): p for name, p in model.named_parameters()}
    buffers = {clean_name(name): b for name, b in model.named_buffers()}
    return parameters, buffers


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; modes, attributes and random state are afterwards as before."""
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    generators = (random.getstate(), np.random.get_state())  # noqa: NPY002 - the state that user code draws from
    devices = _cuda_devices(model)
    fused = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    with ExitStack() as stack:
        stack.enter_context(unchanged(model))
        stack.enter_context(torch.random.fork_rng(devices=devices))
        if hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        _fused_kernels(False, False)
        try:
            model.eval()
            yield
        finally:
            _fused_kernels(*fused)
            for parameter, requires_grad, grad in parameters:  # a training step may toggle its optimizers
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
            random.setstate(generators[0])
            np.random.set_state(generators[1])  # noqa: NPY002 - restores what was read above


def seed_everywhere(model: nn.Module, seed: int) -> None:
    """Seed the generators that `untouched` restores, and no others."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - user code may draw from it
    for device in _cuda_devices(model):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _fused_kernels(attention: bool, mkldnn: bool) -> None:
    """Allow or forbid kernels that hide the operators of attention layers and recurrent nets."""
    torch.backends.mha.set_fastpath_enabled(attention)
    torch._C._set_mkldnn_enabled(mkldnn)  # mkldnn.flags() would set its other flags too, which warns on CPUs


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def _all_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def significant(output: Any) -> list[Tensor]:
    """The tensors of an output that count: the loss where there is one, else the logits, else all."""
    for key in ("loss", "logits"):
        if isinstance(output, Mapping) and isinstance(output.get(key), Tensor):
            return [output[key]]
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
