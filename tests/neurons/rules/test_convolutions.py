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
    "pixels unshuffled": (lambda x: F.pixel_unshuffle(x, 2), [(2, 3, 4, 4)], [2, 3]),
    "put back where they were": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        [(2, 3, 4, 4)],
        [2, 3],
    ),
    "put back in time": (lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2), [(2, 3, 6)], [2, 3]),
    "put back in space": (
        lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2),
        [(2, 3, 4, 4, 4)],
        [2, 3],
    ),
    "others put back where these were": (
        lambda x, y: F.max_unpool2d(y, F.max_pool2d(x, 2, return_indices=True)[1], 2),
        [(2, 3, 4, 4), (2, 3, 2, 2)],
        [2, 3],
    ),
    "largest of random regions": (
        lambda x, r: F.fractional_max_pool2d(x, 2, output_size=3, _random_samples=r.sigmoid()),
        [(2, 3, 6, 6), (2, 3, 2)],
        [2, 3],
    ),
    "largest of random regions in space": (
        lambda x, r: F.fractional_max_pool3d(x, 2, output_size=2, _random_samples=r.sigmoid()),
        [(2, 3, 4, 4, 4), (2, 3, 3)],
        [2, 3],
    ),
    "sampled at points": (
        lambda x, p: F.grid_sample(x, p, align_corners=False),
        [(2, 3, 4, 4), (2, 5, 7, 2)],
        [2, 3, 5, 7],
    ),
    "sampled in space": (
        lambda x, p: F.grid_sample(x, p, align_corners=True),
        [(2, 3, 4, 4, 4), (2, 5, 7, 6, 3)],
        [2, 3, 5, 6, 7],
    ),
    "nearest in time": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), [(2, 3, 4)], [2, 3]),
    "nearest in space": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), [(2, 3, 2, 2, 2)], [2, 3]),
    "bicubic": (lambda x: F.interpolate(x, size=(3, 3), mode="bicubic", antialias=True), [(2, 3, 5, 5)], [2, 3]),
    "in windows": (lambda x: x.unfold(2, 3, 2), [(2, 3, 7)], [2, 3]),
    "shuffled, in as many groups as each holds": (lambda x: F.channel_shuffle(x, 3), [(2, 9, 4)], [2, 3, 3, 4]),
    "shuffled in three groups": (lambda x: F.channel_shuffle(x, 3), [(2, 12, 5)], [2, 3, 4, 5]),
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


def test_points_that_a_model_learns_are_neurons() -> None:
    """Where an image is looked at: each point with the weights that read what is seen there."""
    image = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))

    def look(model, x):
        seen = F.grid_sample(x, model.points.expand(2, -1, -1, -1), align_corners=False)
        return model.head(seen.flatten(1))

    model = Made(look, points=nn.Parameter(torch.rand(1, 7, 1, 2) - 0.5), head=nn.Linear(21, 4))
    [group] = find_neuron_groups(model, image)
    assert (group.n, group.status, set(group.params)) == (7, "verified", {"points", "head.weight"})


def test_channels_stay_together_between_two_grouped_convolutions_only_if_groups_divide_each_other() -> None:
    """Of 9 channels in 3 groups each group sends 3 to each other; of 12 it cannot send as many to each."""
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for width, statuses in ((9, {"verified"}), (12, set())):
        model = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.Tanh(), nn.ChannelShuffle(3), nn.Conv2d(width, 6, 1, groups=3),
            nn.Tanh(), nn.Conv2d(6, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        groups = [group for group in find_neuron_groups(model, image) if "0.weight" in group.params]
        assert {group.status for group in groups} == statuses
