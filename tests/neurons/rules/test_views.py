"""Views and copies: their rules against the operators, and models around them."""

import pytest
import torch

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, X, check_exchangeable, free_axes

FREE = {
    "taken apart": (lambda x: x.view(2, 3, 4), [(6, 4)], [2, 3, 4]),
    "put together": (lambda x: x.flatten(), [(3, 4)], [3, 4]),
    "apart and together": (lambda x: x.view(2, 3, 5).transpose(0, 1).reshape(3, 10), [(6, 5)], [2, 3, 5]),
    "not along the axes": (lambda x: x.view(6, 2), [(4, 3)], []),
    "transposed": (lambda x: x.mT, [(2, 3, 4)], [2, 3, 4]),
    "permuted": (lambda x: x.permute(2, 0, 1), [(2, 3, 4)], [2, 3, 4]),
    "axes added and removed": (lambda x: x.unsqueeze(1).squeeze(), [(2, 3)], [2, 3]),
    "in place": (lambda x: x.clone().unsqueeze_(0).transpose_(1, 2).squeeze_(0), [(2, 3)], [2, 3]),
    "expanded": (lambda x: x.expand(5, 3), [(3,)], [3]),
    "expanded from one": (lambda x: x.expand(2, 5), [(2, 1)], [2]),
    "repeated": (lambda x: x.repeat(2, 2), [(2, 3)], [2, 3]),
    "beside zeros": (lambda x: torch.zeros_like(x) + x, [(2, 3)], [2, 3]),
    "its own strides": (lambda x: x.as_strided((2, 3), (3, 1)), [(2, 3)], [2, 3]),
    "other strides": (lambda x: x.as_strided((2, 2), (3, 1)), [(2, 3)], []),
    "in another precision": (lambda x: x.float().double(), [(2, 3)], [2, 3]),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_a_rule_leaves_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


EXCHANGEABLE = {
    "expanded and reduced": lambda h: h.unsqueeze(1).expand(-1, 4, -1, -1).mean(1),
    "repeated in time": lambda h: h.repeat(1, 2, 1),
    "flattened over tokens": lambda h: h.flatten(0, 1).sin().view(2, 7, 12),
    "strides that are its own": lambda h: h.contiguous().as_strided((2, 7, 12), (84, 12, 1)),
    "axes added and removed in place": lambda h: h.clone().unsqueeze_(1).squeeze_(1).transpose_(1, 2).transpose_(1, 2),
    "transposed in place": lambda h: h.flatten(0, 1).clone().t_().t_().unflatten(0, (2, 7)),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


ORDERED = {
    "strides of another shape": lambda h: h.contiguous().as_strided((2, 7, 12), (84, 1, 7)),
    "unfolded along": lambda h: h.unfold(-1, 3, 1).mean(-1).repeat(1, 1, 2)[..., :12],
}


@pytest.mark.parametrize("between", ORDERED.values(), ids=ORDERED.keys())
def test_an_order_along_the_neurons_leaves_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


APART = {
    "sum pooled": (lambda h: h.tanh().unflatten(-1, (3, 4)).sum(-1), 3, {(3, ()), (4, (3,))}),
}


@pytest.mark.parametrize(("between", "width", "expected"), APART.values(), ids=APART)
def test_axes_that_are_taken_apart(between, width: int, expected: set) -> None:
    groups = find_neuron_groups(Between(between, width), X)
    assert {(g.n, g.block_shape) for g in groups} == expected
    assert {g.status for g in groups} == {"verified"}
