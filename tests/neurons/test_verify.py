import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo.neurons import NeuronGroup, ParamSlice, find_neuron_groups
from lightning_topo.neurons._verify import verify_groups
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


def halves(n: int) -> list[NeuronGroup]:
    """What feeds the neurons of a layer, and what reads them: neither is complete."""
    feeds = (ParamSlice("0.weight", role="incoming"), ParamSlice("0.bias"))
    reads = (ParamSlice("2.weight", dims=(1,), role="outgoing"),)
    return [NeuronGroup("feeds", "unit", n, (), feeds), NeuronGroup("reads", "unit", n, (), reads)]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 12])
def test_two_wrong_groups_do_not_prove_each_other(n: int) -> None:
    """Permuted alike they change nothing, and of two neurons there is one derangement."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, n), nn.Tanh(), nn.Linear(n, 3))
    for seed in range(8):
        found = verify_groups(model, halves(n), lambda m: m(X), seed=seed)
        assert {group.status for group in found} == {"incoming_only"}


def test_many_wrong_groups_do_not_prove_each_other_and_leave_the_right_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(2, 2), nn.Tanh())), nn.Linear(2, 3))
    right = find_neuron_groups(model, torch.randn(7, 2), verify=False)
    assert [group.n for group in right] == [2] * 5
    wrong = halves(2)
    found = verify_groups(model, [right[3], wrong[0], right[1], wrong[1], right[2]], lambda m: m(torch.ones(7, 2)))
    assert [group.status for group in found] == ["verified", "incoming_only"] * 2 + ["verified"]


@pytest.mark.parametrize("n", [3, 4, 5])
def test_what_may_only_be_turned_around_is_no_group(n: int) -> None:
    """Each neuron is read beside its neighbour in a ring: of three, each cycle turns it."""

    class Ring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, n), nn.Linear(1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x).tanh()
            return self.last((h.exp() * h.roll(1, -1)).sum(-1, keepdim=True))

    torch.manual_seed(0)
    ring = NeuronGroup("ring", "unit", n, (), (ParamSlice("first.weight", role="incoming"), ParamSlice("first.bias")))
    for seed in range(8):
        [found] = verify_groups(Ring(), [ring], lambda m: m(X), seed=seed)
        assert found.status == "incoming_only"
