"""What a step reads into Python is named where the loss may depend on it, and not where it was only logged."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_topo._tape import HostRead, StepRecorder
from lightning_topo._tape.mode import Observer
from tests.tape.steps import batch, mlp

Loss = Callable[[nn.Sequential, Tensor], Tensor]


def reads(loss: Loss) -> tuple[HostRead, ...]:
    torch.manual_seed(0)
    net, recorder, x = mlp(5, 8, 3), StepRecorder(), batch(0, 6, 5)
    recorder.begin(net)
    recorder.loss(loss(net, x))
    [tape] = recorder.end()
    assert tape.obstacle == ""
    return tape.host_reads


def by_an_items_value(net: nn.Sequential, x: Tensor) -> Tensor:
    return net(x).square().mean() * net.get_parameter("0.weight").norm().item()


def by_its_negative(net: nn.Sequential, x: Tensor) -> Tensor:
    return net(x).square().mean() + -net.get_parameter("0.weight").norm().item()


def by_a_shape(net: nn.Sequential, x: Tensor) -> Tensor:
    chosen = (net.get_parameter("0.weight").sum(1) > 0).nonzero()[:, 0]
    return net[1](net[0](x))[:, chosen].square().mean()


@pytest.mark.parametrize("loss", [by_an_items_value, by_its_negative, by_a_shape])
def test_what_the_loss_leans_on_is_named_with_the_parameters_it_comes_from(loss: Loss) -> None:
    [read] = reads(loss)
    assert read.params == {"0.weight"}
    wanted = "aten::nonzero" if loss is by_a_shape else "aten::_local_scalar_dense"
    assert read.operator == wanted


def test_a_number_made_by_a_whole_layer_names_all_that_it_descends_from() -> None:
    def loss(net: nn.Sequential, x: Tensor) -> Tensor:
        out = net(x)
        return (out / out.norm().item()).square().mean()

    [read] = reads(loss)
    assert read.params == {"0.weight", "0.bias", "2.weight", "2.bias"}


def logged(net: nn.Sequential, x: Tensor) -> Tensor:
    """A loss that is there, and divided by Lightning when what is logged was read."""
    out = net(x)
    loss = out.square().mean()
    net.get_parameter("0.weight").norm().item()
    net.get_parameter("0.weight").nonzero()
    out.argmax(1).tolist()
    loss.item()
    return loss / 1


def of_the_data(net: nn.Sequential, x: Tensor) -> Tensor:
    x.argmax(1).tolist()
    return (net(x) / x.norm().item()).square().mean()


def computed_with(net: nn.Sequential, x: Tensor) -> Tensor:
    """Positions and what is detached, read by operators alone."""
    h = net[1](net[0](x))
    return (net[2](h) * h.detach().mean()).square().mean() + h.gather(1, h.argmax(1, keepdim=True)).mean()


@pytest.mark.parametrize("loss", [logged, of_the_data, computed_with])
def test_anything_else_is_not_named(loss: Loss) -> None:
    assert reads(loss) == ()


def after_the_loss_but_in_it(net: nn.Sequential, x: Tensor) -> Tensor:
    loss = net(x).square().mean()
    return loss / net.get_parameter("0.weight").norm().item()


def test_a_number_that_comes_back_is_named_whenever_it_was_read() -> None:
    [read] = reads(after_the_loss_but_in_it)
    assert (read.operator, read.params) == ("aten::_local_scalar_dense", {"0.weight"})


def a_memory_written_to(net: nn.Sequential, x: Tensor) -> Tensor:
    kept = torch.zeros(8)
    kept[:4] = net.get_parameter("0.bias").detach()[:4]
    return net(x).square().mean() if kept[0].item() > 9 else net(x).abs().mean()


def test_what_was_written_into_memory_is_read_from_it() -> None:
    assert {read.params for read in reads(a_memory_written_to)} == {frozenset({"0.bias"})}


def by_numpy(net: nn.Sequential, x: Tensor) -> Tensor:
    weights = np.abs(net.get_parameter("0.weight").detach().numpy()).sum(1)
    return (net[1](net[0](x)) * torch.from_numpy(weights)).square().mean()


def by_numpy_of_what_is_gone(net: nn.Sequential, x: Tensor) -> Tensor:
    squares = net.get_parameter("0.bias").square().detach().numpy()
    return (net[1](net[0](x)) * torch.tensor(2 * squares)).mean()


@pytest.mark.parametrize("loss", [by_numpy, by_numpy_of_what_is_gone])
def test_memory_that_numpy_is_given_is_known(loss: Loss) -> None:
    found = {read.operator: read for read in reads(loss)}
    assert found["numpy"].is_certain
    assert found["numpy"].params == {"0.weight" if loss is by_numpy else "0.bias"}


def test_memory_that_numpy_had_before_is_not_named() -> None:
    def loss(net: nn.Sequential, x: Tensor) -> Tensor:
        return net(x).square().mean()

    torch.manual_seed(0)
    net, recorder, x = mlp(5, 8, 3), StepRecorder(), batch(0, 6, 5)
    net.get_parameter("0.weight").detach().numpy()
    recorder.begin(net)
    recorder.loss(loss(net, x))
    assert recorder.end()[0].host_reads == ()


def test_each_loss_is_told_of_what_numpy_was_given_before() -> None:
    torch.manual_seed(0)
    net, recorder, x = mlp(5, 8, 3), StepRecorder(), batch(0, 6, 5)
    recorder.begin(net)
    for _ in range(2):
        recorder.loss(by_numpy(net, x))
        recorder.resume()
    assert [{read.operator for read in tape.host_reads} >= {"numpy"} for tape in recorder.end()] == [True, True]


def test_a_loss_that_is_logged_before_another_is_no_read_of_neurons() -> None:
    torch.manual_seed(0)
    net, recorder, x = mlp(5, 8, 3), StepRecorder(), batch(0, 6, 5)
    recorder.begin(net)
    first = net(x).square().mean()
    recorder.loss(first)
    recorder.resume()
    _ = first.detach(), first.item()
    recorder.loss(net(x).abs().mean())
    recorder.resume()
    seen = net.get_parameter("0.bias").detach().max().item()
    recorder.loss(net(x).abs().sum() + first.detach() * seen)
    assert [{name for read in tape.host_reads for name in read.params} for tape in recorder.end()] == [
        set(), set(), {"0.bias"},
    ]  # fmt: skip


def test_what_autograd_hands_out_for_a_second_derivative_is_not_taken_for_a_read() -> None:
    def loss(net: nn.Sequential, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        [slope] = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    assert reads(loss) == ()


def test_thousands_of_reads_take_a_moment() -> None:
    def loss(net: nn.Sequential, x: Tensor) -> Tensor:
        h = net[0](x)
        total = sum(h[0, 0].item() for _ in range(3000))
        return (net[2](net[1](h)) + total).square().mean()

    begun = time.perf_counter()
    assert len(reads(loss)) == 3000
    assert time.perf_counter() - begun < 10.0


def test_a_function_mode_would_change_bits() -> None:
    """Why none is used to see `tolist` and `numpy`: a layer that is evaluated takes another kernel under it."""

    class Sees(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    torch.manual_seed(0)
    layer, operators, x = (
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(),
        list[str](),
        batch(0, 3, 7, 16),
    )
    with torch.no_grad(), Observer(lambda func, args, kwargs: operators.append(str(func)) or func(*args, **kwargs)):
        layer(x)
        n_plain = len(operators)
        with Sees():
            layer(x)
    assert len(operators) - n_plain > n_plain
