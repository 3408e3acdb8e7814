import pytest
import torch
from torch import nn

from lightning_topo.neurons import (
    NeuronGroup,
    ParamSlice,
    find_neuron_groups,
    gather_state,
    named_moments,
    neuron_table,
)


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    model[0].bias.requires_grad_(False)
    x = torch.randn(5, 3)
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    model(x).square().mean().backward()
    optimizer.step()
    [group] = find_neuron_groups(model, x)
    return model, optimizer, group


def test_moments_come_after_the_weights(trained) -> None:
    model, optimizer, group = trained
    cloud = gather_state(group, model, optimizer, state="params+moments")
    moments = named_moments(model, optimizer)
    assert cloud.shape == (6, 6 + 5 + 5)  # the frozen bias has no moments
    assert torch.equal(cloud[:, :6], group.gather(dict(model.named_parameters())))
    assert torch.equal(cloud[:, 6:11], group.gather(moments["exp_avg"]))
    assert torch.equal(cloud[:, 11:], group.gather(moments["exp_avg_sq"]))
    assert torch.equal(gather_state(group, model, optimizer), cloud[:, :6])


def test_moments_into_a_buffer(trained) -> None:
    model, optimizer, group = trained
    buffer = torch.empty(6, 16)
    assert gather_state(group, model, optimizer, state="params+moments", out=buffer) is buffer
    assert torch.equal(buffer, gather_state(group, model, optimizer, state="params+moments"))
    with pytest.raises(ValueError, match=r"expected out of shape \(6, 16\)"):
        gather_state(group, model, optimizer, state="params+moments", out=torch.empty(6, 6))


def test_a_stack_of_parameters_has_its_moments_and_its_names() -> None:
    model = nn.ModuleDict({"gate": nn.Linear(3, 2), "experts": nn.ModuleList(nn.Linear(3, 4) for _ in range(2))})
    group = NeuronGroup("experts", "expert", 2, (), (ParamSlice("experts.*.weight"), ParamSlice("experts.*.bias")))
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    cloud = gather_state(group, model, optimizer, state="params+moments")
    assert cloud.shape == (2, 3 * 16)
    assert torch.equal(cloud[:, 16:32], group.gather(named_moments(model, optimizer)["exp_avg"]))
    table = neuron_table([group], dict(model.named_parameters()))
    assert "experts.0.weight, experts.1.weight, 2 more" in table


def test_plain_sgd_has_no_moments(trained) -> None:
    model, _, group = trained
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert named_moments(model, optimizer) == {}
    assert gather_state(group, model, optimizer, state="params+moments").shape == (6, 6)


def test_the_table_names_every_group(trained) -> None:
    model, _, group = trained
    lines = neuron_table([group, group.incoming_only("why not")], dict(model.named_parameters())).splitlines()
    assert lines[0].split() == ["name", "kind", "n", "d", "parameters", "verified"]
    assert lines[1].split() == ["0", "unit", "6", "6", "0.weight,", "0.bias,", "2.weight", "yes"]
    assert lines[2].endswith("incoming_only: why not")
    assert neuron_table([], {}) == "no groups of hidden neurons were found"
