"""Where something is compiled no mode may be entered; what is compiled is found."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_topo._tape import StepRecorder, accepted, compiled_reason
from tests.tape.steps import mlp


@torch.compile(backend="eager")
def fast_activation(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def through(x: Tensor) -> Tensor:
    return fast_activation(x)


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return fast_activation(self.net(x))


class CallsDeeper(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return through(self.net(x))


class Holds(Calls):
    def __init__(self) -> None:
        super().__init__()
        self.activations = [torch.compile(torch.nn.functional.gelu, backend="eager")]

    def forward(self, x: Tensor) -> Tensor:
        return self.activations[0](self.net(x))


class CompiledMethod(Calls):
    @torch.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def compiled_in_place() -> nn.Module:
    net = mlp(3, 4, 2)
    net[0].compile(backend="eager")
    return net


def compiled_outside() -> nn.Module:
    return torch.compile(mlp(3, 4, 2), backend="eager")  # pyright: ignore[reportReturnType]


def compiled_part() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), compiled_outside())


@pytest.mark.parametrize(
    "build", [Calls, CallsDeeper, Holds, CompiledMethod, compiled_in_place, compiled_outside, compiled_part]
)
def test_what_is_compiled_is_found(build) -> None:
    assert "compiled" in (compiled_reason(build()) or "")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.layer = mlp(3, 4, 2), nn.TransformerEncoderLayer(4, 2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.net(x))


class KeptFromCompiling(Plain):
    """As DeepSpeed's hooks and parts of transformers are."""

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def hooked() -> nn.Module:
    layer = mlp(3, 4, 2)
    layer.register_forward_pre_hook(torch.compiler.disable(lambda module, args: None))
    return layer


@pytest.mark.parametrize("build", [Plain, partial(mlp, 3, 4, 2), KeptFromCompiling, hooked])
def test_what_is_not_compiled_is_not(build) -> None:
    assert compiled_reason(build()) is None


def test_a_module_that_is_compiled_later_compiles_as_often() -> None:
    counts = []
    for watched in (False, True):
        torch._dynamo.reset()
        graphs = []

        def backend(graph, inputs, graphs=graphs):
            graphs.append(graph)
            return graph.forward

        net, x = mlp(3, 4, 2), torch.ones(2, 3)
        if watched:
            recorder = StepRecorder()
            recorder.begin(net)
            recorder.loss(net(x).sum())
            recorder.end()
        compiled = torch.compile(net, backend=backend)
        for _ in range(3):
            compiled(x)
        counts.append(len(graphs))
    assert counts == [1, 1]


@pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "ignore_compile_internals"), reason="this torch skips frames under any mode"
)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_step_that_was_taken_for_eager_still_compiles(backend: str) -> None:
    """What `compiled_reason` could not see compiles as without us: as often, as much, to the same numbers."""
    found, values = [], []
    for watched in (False, True):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        net, x = mlp(3, 4, 2), torch.ones(2, 3)
        compiled = torch.compile(net.forward, backend=backend)
        for index in range(3):
            recorder = StepRecorder()
            if watched and index == 0:
                recorder.begin(net)
            loss = compiled(x).sum()
            if recorder.is_active:
                recorder.loss(loss)
            loss.backward()
            recorder.end()
        found.append({name: dict(counts) for name, counts in counters.items() if name in ("stats", "frames")})
        values.append(loss.detach())
    assert found[0]["stats"]["unique_graphs"] == 1
    assert found[0] == found[1]
    assert torch.equal(*values)


class CompiledFunction(torch.autograd.Function):
    """What torch makes of a compiled graph, under the name that it gives it: no operator of it is seen."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.from_numpy(x.detach().numpy() @ weight.detach().numpy().T)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


class Opaque(CompiledFunction):
    """The same, by a user."""


@pytest.mark.parametrize("function", [CompiledFunction, Opaque])
def test_a_step_that_turns_out_to_be_compiled_is_said_to_be_so(function) -> None:
    net, x = mlp(3, 4, 2), torch.ones(2, 3)
    recorder = StepRecorder()
    recorder.begin(net)
    loss = function.apply(net[0](x), net[2].weight).square().mean()
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    found = accepted(tape, {name: p.grad for name, p in net.named_parameters()})
    if function is CompiledFunction:
        assert found.obstacle == "the step runs code that torch.compile has compiled"
    else:
        assert not found.obstacle
        assert "the autograd function Opaque" in found.gradient_obstacle
