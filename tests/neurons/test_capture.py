"""Whole neurons from parameters that come one at a time, and modules as they were before sharding."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lightning_topo import NeuronGroup, find_neuron_groups
from lightning_topo.neurons import ParamSlice
from lightning_topo.neurons._capture import (
    gather_clouds,
    shard_copies,
    sharding,
    unsharded,
    whole_copy,
    whole_parameters,
)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU())


def attention():
    torch.manual_seed(0)
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))


@pytest.mark.parametrize(("make", "shape"), [(model, (5, 3, 4, 4)), (attention, (2, 5, 8))])
def test_clouds_of_one_parameter_at_a_time_are_those_of_all_together(make, shape):
    net = make()
    groups = find_neuron_groups(net, torch.randn(shape))
    assert groups
    clouds, failures = gather_clouds(net, groups, [group.name for group in groups])
    assert not failures
    for group in groups:
        assert torch.equal(clouds[group.name], group.gather(dict(net.named_parameters())))


def test_stacked_parameters_are_gathered_when_the_last_has_come():
    net = nn.ModuleList(nn.Linear(3, 2) for _ in range(4))
    group = NeuronGroup("experts", "expert", 4, (), (ParamSlice("*.weight"), ParamSlice("*.bias")))
    clouds, failures = gather_clouds(net, [group], ["experts"])
    assert not failures
    assert torch.equal(clouds["experts"], group.gather(dict(net.named_parameters())))


def test_a_cloud_that_does_not_fit_is_named_and_the_others_are_gathered():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    wrong = NeuronGroup("wrong", "unit", 5, (), (ParamSlice("0.weight"),))
    right = NeuronGroup("right", "unit", 2, (), (ParamSlice("1.weight"),))
    elsewhere = NeuronGroup("elsewhere", "unit", 4, (), (ParamSlice("0.bias"),))
    clouds, failures = gather_clouds(net, [wrong, right, elsewhere], ["wrong", "right"])
    assert clouds.keys() == {"right"}
    assert "expected a tensor shaped as parameter '0.weight'" in failures["wrong"]


@pytest.mark.parametrize(("make", "shape"), [(model, (5, 3, 4, 4)), (attention, (2, 5, 8))])
def test_a_copy_without_values_has_the_same_groups(make, shape):
    net, inputs = make(), torch.randn(shape)
    found = find_neuron_groups(net, inputs, verify=False)
    copy = whole_copy(net, mine=True, values=False)
    assert {p.device.type for p in copy.parameters()} == {"meta"}
    assert find_neuron_groups(copy, inputs.to("meta"), verify=False) == found


def test_a_copy_is_the_module_without_what_sharding_has_put_over_it():
    net = model().eval()
    inputs = torch.randn(5, 3, 4, 4)
    expected = net(inputs)
    net[4].__class__ = type("FSDPLinear", (FSDPModule, nn.Linear), {})  # as fully_shard does
    calls = []

    def hook(module, args):
        calls.append("sharding")

    hook.__module__ = "torch.distributed.fsdp._fully_shard._fsdp_state"
    net[0].register_forward_pre_hook(hook)
    net[0].register_forward_pre_hook(lambda module, args: calls.append("user"))
    assert sharding(net) == "fsdp2"
    copy = unsharded(net, {name: p.clone() for name, p in whole_parameters(net)})
    assert type(copy[4]) is nn.Linear
    assert torch.equal(copy(inputs), expected)
    assert calls == ["user"]
    copy[0].weight.data.zero_()
    copy[1].running_mean.fill_(1.0)
    assert not net[1].running_mean.any()
    assert net[0].weight.any()
    assert not torch.equal(copy(inputs), expected)


@pytest.mark.parametrize(("held", "is_had"), [(3, True), (1, False)])
def test_of_partitions_that_lie_in_files_there_are_no_copies(held, is_had):
    """As DeepSpeed marks them: the tensor is then a place holder."""
    net = nn.Linear(2, 3, bias=False)
    net.weight.ds_status = SimpleNamespace(name="NOT_AVAILABLE")
    net.weight.ds_tensor = torch.zeros(held)
    net.weight.ds_tensor.ds_numel = 3
    copies = shard_copies(net)
    assert (copies is not None) == is_had
    if copies is not None:
        assert copies["weight"].tolist() == [0.0, 0.0, 0.0]
