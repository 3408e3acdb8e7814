"""Joining tensors and taking them apart: the rules against the operators, and models around them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, Made, X, check_exchangeable, free_axes

FREE = {
    "side by side": (lambda x, y: torch.cat([x, y], 1), [(2, 3), (2, 5)], [2, 3, 5]),
    "with nothing": (lambda x, y: torch.cat([x, y], 1), [(2, 3), (2, 0)], [2, 3]),
    "a part": (lambda x: x[:, 2:5], [(4, 5)], [2, 3, 4]),
    "all of it": (lambda x: x[:, :], [(4, 5)], [4, 5]),
    "every second": (lambda x: x[:, ::2], [(4, 6)], [3, 3, 4]),
    "every second of an odd number": (lambda x: x[:, ::2], [(4, 7)], [3, 3, 4]),
    "both halves in turn": (lambda x: (x[:, ::2], x[:, 1::2]), [(4, 10)], [4, 5, 5]),
    "each second gated by its neighbour": (lambda x: x[:, ::2] * x[:, 1::2].sigmoid(), [(4, 10)], [4, 5]),
    "each second, from the third on": (lambda x: x[:, 2:9:2], [(4, 10)], [4, 4, 5]),
    "the second of three": (lambda x: x[:, 1::3], [(4, 9)], [3, 3, 3, 4]),
    "the last of three, and one more": (lambda x: x[:, 1::3] * 1, [(4, 11)], [3, 3, 3, 4]),
    "two far apart": (lambda x: x[:, 1::4], [(4, 6)], [3, 4]),
    "a single one far on": (lambda x: x[:, 3::4], [(4, 6)], [2, 3, 4]),
    "in turn, and turned around": (
        lambda x: torch.stack([x[:, 1::2], -x[:, ::2]], -1).flatten(1),
        [(4, 10)],
        [4, 5, 5],
    ),
    "in turn along two axes": (lambda x: x[:, ::2, 1::2] * 1, [(2, 6, 4)], [2, 2, 2, 3, 3]),
    "in turn, then half of it": (
        lambda x, y: torch.stack([x, y], -1).flatten(1)[:, :6],
        [(2, 5), (2, 5)],
        [2, 2, 2, 2, 3, 3],
    ),
    "in turn, both halves, multiplied": (
        lambda x, y: (lambda a, b: a * b)(*torch.stack([x, y], -1).flatten(1).chunk(2, 1)),
        [(2, 6), (2, 6)],
        [2, 2, 3, 3],
    ),
    "in turn, every second": (lambda x, y: torch.stack([x, y], -1).flatten(1)[:, ::2], [(2, 5), (2, 5)], [2, 5, 5]),
    "in turn, softened along": (lambda x: x.unflatten(1, (5, 2)).softmax(2)[..., 0], [(2, 10)], [2, 5]),
    "indices in a row, softened along": (lambda x: x.unflatten(1, (2, 5)).softmax(1)[:, 0], [(2, 10)], [2, 5]),
    "in turn, each with each": (
        lambda x: ((z := x.unflatten(1, (5, 2))).transpose(1, 2).bmm(z).sin(), z[..., 0].sin()),
        [(2, 10)],
        [2, 5],
    ),
    "in turn, after their sum": (
        lambda x: (x.unflatten(1, (5, 2)).sum(2).sin().sum(1), x[:, ::2].sin()),
        [(2, 10)],
        [2, 5],
    ),
    "in turn, before their sum": (
        lambda x: (x[:, ::2].sin(), x.unflatten(1, (5, 2)).sum(2).sin().sum(1)),
        [(2, 10)],
        [2, 5],
    ),
    "indices in a row, after their sum": (
        lambda x: (x.unflatten(1, (2, 5)).sum(1).sin().sum(1), x.unflatten(1, (2, 5))[:, 0]),
        [(2, 10)],
        [2, 5],
    ),
    "stacked, then a part of the indices": (
        lambda x, y, z: torch.stack([x, y, z], 1)[:, :2].sin(),
        [(2, 3), (2, 3), (2, 3)],
        [2, 3],
    ),
    "stacked side by side, then a part": (
        lambda x, y, z: torch.stack([x, y, z], 1).flatten(1)[:, :6].sin(),
        [(2, 3), (2, 3), (2, 3)],
        [2, 3],
    ),
    "in turn, summed along": (lambda x: x[:, ::2] + x.sum(1, keepdim=True), [(2, 10)], [2, 5, 5]),
    "split": (lambda x: x.split([2, 3], 1), [(4, 5)], [2, 3, 4]),
    "chunks": (lambda x: x.chunk(2, 1), [(4, 6)], [3, 3, 4]),
    "chunks, multiplied": (lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], [(4, 6)], [3, 4]),
    "gated": (F.glu, [(4, 6)], [3, 4]),
    "gated along rows": (lambda x: F.glu(x, 0), [(6, 4)], [3, 4]),
    "one index of what was computed": (lambda x: x.tanh()[:, 1] * 1, [(4, 5)], [4]),
    "one index of a weight": (lambda x: x[:, 1] * 1, [(4, 5)], [4] * 5),
    "each index by itself": (lambda x: [part.tanh() for part in x.unbind(0)], [(3, 4)], [4, 4, 4]),
    "two of three indices together": (lambda x: x[0] * x[2], [(3, 4)], [4, 4]),
    "stacked and taken apart": (lambda x, y: torch.stack([x, y], 1).unbind(1), [(3, 4), (3, 4)], [3, 3, 4, 4]),
    "zeros but at one index": (lambda g: torch.ops.aten.select_backward(g, [3, 5], 1, 2), [(3,)], [3]),
    "zeros around a part": (lambda g: torch.ops.aten.slice_backward(g, [4, 5], 1, 1, 4, 1), [(4, 3)], [3, 4]),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_a_rule_leaves_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


EXCHANGEABLE = {
    "one neuron, for its shape only": lambda h: h + torch.zeros(h[..., -1].shape).unsqueeze(-1),
    "the gradient of one position in time": lambda h: torch.ops.aten.select_backward(h[:, 2], [2, 7, 12], 1, 2),
    "the gradient of a part of time": lambda h: torch.ops.aten.slice_backward(h[:, 2:5], [2, 7, 12], 1, 2, 5, 1),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


ORDERED = {
    "scaled by one neuron": lambda h: h * h[..., 3:4].squeeze(-1).unsqueeze(-1) + h * h[..., 3].unsqueeze(-1),
    "every second, by its place": lambda h: (h[..., ::2] * torch.arange(6.0)).repeat_interleave(2, -1),
}


@pytest.mark.parametrize("between", ORDERED.values(), ids=ORDERED.keys())
def test_an_order_along_the_neurons_leaves_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


@pytest.mark.parametrize("shown", [lambda h: h[:, :, 3], lambda h: h[:, :, 3].unsqueeze(0)])
def test_what_the_model_returns_is_read(shown) -> None:
    """A neuron that is shown, or its position, is not like the others, though no operator takes it up."""
    model = Made(
        lambda m, x: (m.last(m.first(x).tanh()), shown(m.first(x))), first=nn.Linear(5, 12), last=nn.Linear(12, 3)
    )
    assert find_neuron_groups(model, X) == []


APART = {
    "concatenated": (lambda h: torch.cat([h, h.sin()], -1), 24, {(12, ())}),
    "gated": (lambda h: h.chunk(2, -1)[0] * h.chunk(2, -1)[1].sigmoid(), 6, {(6, ())}),
    "split and swapped": (lambda h: torch.cat(h.split([4, 8], -1)[::-1], -1), 12, {(4, ()), (8, ())}),
    "glu": (lambda h: F.glu(h), 6, {(6, ())}),
    "every second": (lambda h: h[..., ::2].repeat_interleave(2, -1), 12, {(6, ())}),
    "every second gates": (lambda h: h[..., ::2] * h[..., 1::2].sigmoid(), 6, {(6, ())}),
    "each second by itself": (lambda h: torch.cat([h[..., ::2].sin(), h[..., 1::2].exp()], -1), 12, {(6, ())}),
    "in turn": (lambda h: torch.stack([h[..., ::2].sin(), h[..., 1::2]], -1).flatten(-2), 12, {(6, ())}),
    "maxout, in turn": (lambda h: h.unflatten(-1, (6, 2)).amax(-1), 6, {(6, ()), (2, (6,))}),
    "maxout": (lambda h: torch.stack([h[..., :6], h[..., 6:]], -1).amax(-1), 6, {(6, ())}),
}


@pytest.mark.parametrize(("between", "width", "expected"), APART.values(), ids=APART)
def test_axes_that_are_taken_apart(between, width: int, expected: set) -> None:
    groups = find_neuron_groups(Between(between, width), X)
    assert {(g.n, g.block_shape) for g in groups} == expected
    assert {g.status for g in groups} == {"verified"}
