"""One step, recorded and held against its gradients."""

from collections.abc import Callable

from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, Tape, accepted


def recorded(module: nn.Module, loss: Callable[[], Tensor]) -> Tape:
    """The accepted tape of one loss and its backward pass."""
    recorder = StepRecorder()
    recorder.begin(module)
    value = loss()
    recorder.loss(value)
    value.backward()
    [tape] = recorder.end()
    return accepted(tape, {name: p.grad for name, p in module.named_parameters()})
