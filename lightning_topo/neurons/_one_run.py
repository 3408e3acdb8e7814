"""Run a user's function on a model once, as they have asked, and leave the model as it was."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_topo._protection import kept_random_state, unchanged
from lightning_topo._tape import StepRecorder, Tape, accepted
from lightning_topo._tape.acceptance import combined
from lightning_topo._tape.held import held_storages
from lightning_topo._tape.names import clean_name

Run = Callable[[nn.Module], Any]


@dataclass(frozen=True, slots=True)
class Forward:
    """The forward pass on these arguments."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, module: nn.Module) -> Any:
        """What the module returns."""
        return module(*self.args, **self.kwargs)


def record_run(model: nn.Module, run: Run) -> Tape:
    """The tape of `run(model)`, in evaluation mode, accepted by the gradient of the run's own graph."""
    recorder = StepRecorder()
    with untouched(model), torch.enable_grad():
        try:
            # Of other runs it is not known what their data are, which the model may hold.
            known = isinstance(run, Forward)
            recorder.begin(model, held=held_storages(model, (run.args, run.kwargs)) if known else frozenset())
            outputs = significant(run(model))
            recorder.outputs(outputs)
        finally:
            tapes = recorder.end()
        [tape] = tapes
        return accepted(tape, None if tape.obstacle else _gradient(model, outputs))


def _gradient(model: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor | None] | None:
    """The gradient of the run in the model's parameters; None where the run has used up its graph."""
    parameters = {name: p for name, p in named_state(model)[0].items() if p.requires_grad}
    if not parameters or not any(output.requires_grad for output in outputs):
        return None
    try:
        found = torch.autograd.grad(combined(outputs), list(parameters.values()), allow_unused=True)
    except RuntimeError:
        return None
    return dict(zip(parameters, found, strict=True))


def named_state(model: nn.Module) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Parameters and buffers by clean name; what is shared under several names comes under its first."""
    parameters = {clean_name(name): p for name, p in model.named_parameters()}
    buffers = {clean_name(name): b for name, b in model.named_buffers()}
    return parameters, buffers


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; modes, attributes and random state are afterwards as before."""
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(unchanged(model))
        stack.enter_context(kept_random_state())
        if hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            model.eval()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for parameter, requires_grad, grad in parameters:  # a training step may toggle its optimizers
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad


def significant(output: Any) -> list[Tensor]:
    """The tensors of an output that count: the loss where there is one, else the logits, else all."""
    for key in ("loss", "logits"):
        if isinstance(output, Mapping) and isinstance(output.get(key), Tensor):
            return [output[key]]
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
