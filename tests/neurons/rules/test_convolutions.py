"""Convolutions, pooling, padding and unfolding: their rules against the operators, and models around them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, Made, X, check_exchangeable, free_axes

FREE = {
    "convolution": (F.conv2d, [(2, 3, 6, 6), (4, 3, 3, 3), (4,)], [2, 3, 4]),
    "convolution over time": (F.conv1d, [(2, 3, 6), (4, 3, 3)], [2, 3, 4]),
    "in groups": (lambda x, w: F.conv2d(x, w, groups=2), [(3, 4, 6, 6), (10, 2, 3, 3)], [2, 2, 3, 5]),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=5), [(2, 5, 6, 6), (5, 1, 3, 3)], [2, 5]),
    "transposed": (F.conv_transpose2d, [(2, 3, 5, 5), (3, 4, 3, 3), (4,)], [2, 3, 4]),
    "transposed, in groups": (
        lambda x, w: F.conv_transpose2d(x, w, groups=2),
        [(3, 4, 5, 5), (4, 5, 3, 3)],
        [2, 2, 3, 5],
    ),
    "largest of neighbours": (lambda x: F.max_pool2d(x, 2), [(2, 3, 6, 6)], [2, 3]),
    "mean of neighbours": (lambda x: F.avg_pool1d(x, 2), [(2, 3, 6)], [2, 3]),
    "mean to a size": (lambda x: F.adaptive_avg_pool2d(x, 2), [(2, 3, 6, 6)], [2, 3]),
    "made larger": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), [(2, 3, 4, 4)], [2, 3]),
    "padded by zeros": (lambda x: F.pad(x, (1, 2)), [(2, 3)], [2, 3]),
    "cropped": (lambda x: F.pad(x, (-1, 0)), [(2, 5)], [2]),
    "reflected": (lambda x: F.pad(x, (1, 1), mode="reflect"), [(2, 3, 6)], [2, 3]),
    "pixels shuffled": (lambda x: F.pixel_shuffle(x, 2), [(2, 12, 3, 3)], [2, 3]),
    "unfolded": (lambda x: F.unfold(x, 3), [(2, 5, 4, 4)], [2, 5]),
    "folded": (lambda x: F.fold(x, (4, 4), 3), [(2, 45, 4)], [2, 5]),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_a_rule_leaves_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


EXCHANGEABLE = {
    "pooled over time": lambda h: F.max_pool1d(h.transpose(1, 2), 3).transpose(1, 2),
    "padded in time": lambda h: F.pad(h, (0, 0, 1, 2)),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


ORDERED = {
    "convolved along": lambda h: F.avg_pool1d(h, 3, 1, 1),
}


@pytest.mark.parametrize("between", ORDERED.values(), ids=ORDERED.keys())
def test_an_order_along_the_neurons_leaves_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


def test_channels_pass_through_unfold_and_fold() -> None:
    images = torch.randn(2, 3, 8, 8)
    model = Made(
        lambda m, x: m.last(F.fold(F.unfold(m.first(x), 3).tanh(), (8, 8), 3)),
        first=nn.Conv2d(3, 6, 1), last=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    [group] = find_neuron_groups(model, images)
    assert (group.n, group.status, group.params) == (6, "verified", ("first.weight", "first.bias", "last.weight"))
