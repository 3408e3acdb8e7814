import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_topo.neurons import NeuronGroup, ParamSlice


def mlp_group(n: int = 4, status="unverified") -> NeuronGroup:
    slices = (
        ParamSlice("0.weight"),
        ParamSlice("0.bias", role="elementwise"),
        ParamSlice("2.weight", dims=(1,), role="outgoing"),
    )
    return NeuronGroup("0", "unit", n, (), slices, status)


def heads_group() -> NeuronGroup:
    """Value dimensions inside each of 3 heads of a fused query-key-value projection."""
    slices = (
        ParamSlice("qkv.weight", (("narrow", 0, 12, 6), ("unflatten", 0, (3, 2))), (0, 1)),
        ParamSlice("out.weight", (("unflatten", 1, (3, 2)),), (1, 2), role="outgoing"),
    )
    return NeuronGroup("attn.value", "head_dim", 2, (3,), slices)


def test_gather_is_row_bias_and_column_of_each_unit() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    cloud = mlp_group().gather(dict(net.named_parameters()))
    expected = torch.cat([net[0].weight, net[0].bias[:, None], net[2].weight.T], dim=1)
    assert torch.equal(cloud, expected)
    assert not cloud.requires_grad


def test_gather_lists_blocks_one_after_the_other() -> None:
    tensors = {"qkv.weight": torch.randn(18, 5), "out.weight": torch.randn(5, 6)}
    cloud = heads_group().gather(tensors)
    assert cloud.shape == (6, 10)
    for head in range(3):
        for i in range(2):
            row = torch.cat([tensors["qkv.weight"][12 + 2 * head + i], tensors["out.weight"][:, 2 * head + i]])
            assert torch.equal(cloud[2 * head + i], row)


def test_gather_neither_casts_nor_moves_integers_and_half() -> None:
    group = NeuronGroup("0", "unit", 4, (), (ParamSlice("0.weight"),))
    for dtype in (torch.int64, torch.bfloat16, torch.float64):
        assert group.gather({"0.weight": torch.ones(4, 3, dtype=dtype)}).dtype == dtype


def test_gather_uses_only_the_keys_it_is_given() -> None:
    group = mlp_group()
    assert group.gather({"0.bias": torch.arange(4.0)}).tolist() == [[0.0], [1.0], [2.0], [3.0]]
    with pytest.raises(ValueError, match=r"at least one of \['0.weight'"):
        group.gather({"elsewhere": torch.zeros(4)})


def test_gather_into_a_buffer_allocates_nothing_new() -> None:
    tensors = {"qkv.weight": torch.randn(18, 5), "out.weight": torch.randn(5, 6)}
    buffer = torch.empty(6, 10)
    assert heads_group().gather(tensors, out=buffer) is buffer
    assert torch.equal(buffer, heads_group().gather(tensors))
    with pytest.raises(ValueError, match=r"expected out of shape \(6, 10\), got \(6, 9\)"):
        heads_group().gather(tensors, out=torch.empty(6, 9))


def test_gather_of_another_shape_says_which_parameter() -> None:
    with pytest.raises(ValueError, match=r"'0.weight' of group '0'.*got shape \(5, 3\)"):
        mlp_group().gather({"0.weight": torch.zeros(5, 3)})


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_gather_accepts_the_names_of_wrapped_modules(prefix: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    plain = dict(net.named_parameters())
    wrapped = {prefix + name: p for name, p in plain.items()}
    assert torch.equal(mlp_group().gather(wrapped), mlp_group().gather(plain))


@given(st.permutations(range(6)))
def test_permuting_tensors_permutes_rows(order: list[int]) -> None:
    group = mlp_group(6)
    tensors = {"0.weight": torch.randn(6, 3), "0.bias": torch.randn(6), "2.weight": torch.randn(2, 6)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    permuted = group.permute(tensors, torch.tensor(order))
    assert torch.equal(group.gather(permuted), group.gather(tensors)[order])
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


@pytest.mark.parametrize(
    "slices",
    [
        (ParamSlice("w"), ParamSlice("v", dims=(1,))),
        (ParamSlice("c"), ParamSlice("w", dims=(1,))),
        (ParamSlice("v", (("unflatten", 0, (10, 40)),), (1,)),),
    ],
)
def test_large_tensors_are_permuted_in_place_as_they_would_be_as_copies(slices) -> None:
    n = slices[0].view(torch.empty(400, 400)).shape[0] if slices[0].param != "c" else 400
    group, order = NeuronGroup("g", "unit", n, (), slices), torch.randperm(n)
    conv = torch.randn(400, 30, 3, 3).to(memory_format=torch.channels_last)
    tensors = {"w": torch.randn(400, 400), "v": torch.randn(400, 400).T, "c": conv}
    cloud = group.gather(tensors)
    copies = group.permute(tensors, order)
    assert torch.equal(group.gather(tensors), cloud)
    assert torch.equal(group.gather(copies), cloud[order])
    group.permute_(tensors, order)
    assert all(torch.equal(tensors[name], copies[name]) for name in tensors)


def test_where_one_tensor_has_another_shape_none_is_permuted() -> None:
    group, tensors = mlp_group(), {"0.weight": torch.randn(4, 3), "0.bias": torch.randn(4), "2.weight": torch.randn(2)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with pytest.raises((RuntimeError, IndexError)):
        group.permute_(tensors, torch.tensor([1, 2, 3, 0]))
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_permuting_keeps_shared_tensors_shared() -> None:
    shared = torch.randn(4, 4)
    tensors = {"0.weight": shared, "tied": shared}
    group = NeuronGroup("0", "unit", 4, (), (ParamSlice("0.weight"),))
    permuted = group.permute(tensors, torch.tensor([1, 2, 3, 0]))
    assert permuted["tied"] is permuted["0.weight"]


def test_stacked_parameters_are_one_neuron_each() -> None:
    group = NeuronGroup("experts", "expert", 3, (), (ParamSlice("experts.*.weight"), ParamSlice("router.weight")))
    tensors = {f"experts.{i}.weight": torch.full((2, 2), float(i)) for i in range(3)}
    tensors["router.weight"] = torch.arange(6.0).reshape(3, 2)
    assert group.gather(tensors)[2].tolist() == [2.0, 2.0, 2.0, 2.0, 4.0, 5.0]
    order = torch.tensor([2, 0, 1])
    assert torch.equal(group.gather(group.permute(tensors, order)), group.gather(tensors)[order])


def test_a_group_is_data() -> None:
    assert pickle.loads(pickle.dumps(heads_group())) == heads_group()
    with pytest.raises(ValueError, match="at least one neuron"):
        NeuronGroup("0", "unit", 0, (), ())
    with pytest.raises(ValueError, match="expected 2 dims"):
        NeuronGroup("0", "head_dim", 2, (3,), (ParamSlice("0.weight"),))
