import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class WithPositions(nn.Module):
    """Adds a parameter to each sample through a view: of a single sample both have one gradient, in one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.positions, self.out = nn.Linear(5, 8), nn.Parameter(torch.randn(8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.positions.view(1, 8) + self.hidden(x)).tanh())


@pytest.mark.parametrize("n_samples", [1, 2])
def test_a_gradient_whose_memory_autograd_goes_on_with_is_left_as_it_is(n_samples: int) -> None:
    torch.manual_seed(0)
    [group] = find_neuron_groups(WithPositions(), torch.randn(n_samples, 5))
    assert (group.status, group.reason) == ("verified", "")
    assert {piece.param for piece in group.slices} >= {"hidden.weight", "positions", "out.weight"}
