import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.networks import network

X, Y = torch.randn(7, 5), torch.randint(3, (7,))


def loss(model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(X), Y)


def test_verification_can_be_skipped() -> None:
    calls = []

    def counted(model: nn.Module) -> torch.Tensor:
        calls.append(None)
        return loss(model)

    assert {g.status for g in find_neuron_groups(network(), run=counted, verify=False)} == {"unverified"}
    assert len(calls) == 1


def test_the_model_runs_once_however_many_groups_there_are() -> None:
    calls = []

    def counted(model: nn.Module) -> torch.Tensor:
        calls.append(None)
        return loss(model)

    torch.manual_seed(0)
    layers = [module for _ in range(6) for module in (nn.Linear(5, 5), nn.Tanh())]
    groups = find_neuron_groups(nn.Sequential(*layers, nn.Linear(5, 3)), run=counted)
    assert [g.status for g in groups] == ["verified"] * 6
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_of_any_precision(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    assert [g.status for g in find_neuron_groups(model, X.to(dtype))] == ["verified"] * 2
