import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups, verify_groups


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


X, Y = torch.randn(7, 5), torch.randint(3, (7,))


def loss(model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(X), Y)


@pytest.mark.parametrize("index", range(7))
def test_a_group_that_lacks_a_slice_is_rejected(index: int) -> None:
    model = network()
    group = find_neuron_groups(model, run=loss)[0]
    assert len(group.slices) == 7  # weight, bias, batch norm's two and its two statistics, outgoing weight
    broken = replace(group, slices=group.slices[:index] + group.slices[index + 1 :])
    [verdict] = verify_groups(model, [broken], loss)
    assert verdict.status == "incoming_only"
    assert "not complete" in verdict.reason
    assert all(piece.role in ("incoming", "elementwise") for piece in verdict.slices)


def test_a_slice_along_the_wrong_axis_is_rejected() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    [group] = find_neuron_groups(model, torch.randn(4, 6))
    wrong = replace(group.slices[2], dims=(0,))
    [verdict] = verify_groups(
        model, [replace(group, slices=(*group.slices[:2], wrong))], lambda m: m(X[:, :1].expand(7, 6))
    )
    assert verdict.status == "incoming_only"


def test_one_bad_group_does_not_condemn_the_others() -> None:
    model = network()
    first, second = find_neuron_groups(model, run=loss)
    bad = replace(first, slices=first.slices[:-1])
    assert [g.status for g in verify_groups(model, [bad, second], loss)] == ["incoming_only", "verified"]


def test_neurons_without_influence_are_inert() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.aside = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

        def forward(self, x):
            return self.net(x) + 0 * self.aside(x)

    groups = find_neuron_groups(Unused(), X)
    assert {g.name: g.status for g in groups} == {
        "net.0": "verified",
        "net.4": "verified",
        "aside.0": "inert",
    }


def test_a_rule_that_treats_neurons_unequally_is_rejected_by_its_gradient() -> None:
    class Biased(torch.autograd.Function):
        """The identity, whose gradient reaches the first neuron alone."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return torch.cat([gradient[:, :1], 0 * gradient[:, 1:]], dim=1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc2(Biased.apply(torch.tanh(self.fc1(x))))

    torch.manual_seed(0)
    [group] = find_neuron_groups(Net(), run=loss)
    assert group.status == "incoming_only"
    assert "gradient of the loss" in group.reason


def test_nothing_in_the_model_changes() -> None:
    model = network()
    model.register_forward_hook(lambda *_: None)
    model[0].bias.requires_grad_(False)
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = dict(model._forward_hooks)
    parameters = {name: id(p) for name, p in model.named_parameters()}
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 - what user code draws from
    find_neuron_groups(model, run=loss)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert dict(model._forward_hooks) == hooks
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert [p.requires_grad for p in model.parameters()] == [True, False, *[True] * 6]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002 - as above


def test_attributes_that_the_step_changes_are_restored() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls, self.total, self.seen = network(), 0, torch.zeros(3), []

        def forward(self, x):
            self.calls += 1
            self.total += 1
            self.seen.append(self.calls)
            self.cache = x
            return self.net(x)

    model = Counting()
    find_neuron_groups(model, X)
    assert (model.calls, model.total.tolist(), model.seen, hasattr(model, "cache")) == (
        0,
        [0.0] * 3,
        [],
        False,
    )


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
