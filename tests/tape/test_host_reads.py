"""What a step reads into Python is named where the loss shows it, and not where it was only logged."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_topo._tape import HostRead, StepRecorder
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
    net.get_parameter("0.weight").norm().item()
    net.get_parameter("0.weight").nonzero()
    return net(x).square().mean()


def of_the_data(net: nn.Sequential, x: Tensor) -> Tensor:
    return (net(x) / x.norm().item()).square().mean()


def a_number_that_programs_have_anyway(net: nn.Sequential, x: Tensor) -> Tensor:
    one = net.get_parameter("0.weight").detach().clone().fill_(1.0).max().item()
    return (net(x) * one).square().mean()


@pytest.mark.parametrize("loss", [logged, of_the_data, a_number_that_programs_have_anyway])
def test_anything_else_is_not_named(loss: Loss) -> None:
    assert reads(loss) == ()
