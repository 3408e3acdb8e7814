"""The independent check of groups: it passes what may be permuted, and catches what may not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.permutations import MODELS, check
from benchmarks.zoo_models import ZOO
from lightning_topo.neurons import NeuronGroup, ParamSlice, find_neuron_groups


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 5)


def test_a_group_passes_and_one_slice_of_it_does_not():
    [found] = check(model(), find_neuron_groups(*model()))
    assert not found.is_false
    assert found.is_caught
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize(
    "slices",
    [
        (ParamSlice("0.weight"), ParamSlice("0.bias")),  # what reads them is missing
        (ParamSlice("0.weight"), ParamSlice("2.weight", dims=(1,))),
        (ParamSlice("0.bias"), ParamSlice("0.weight", dims=(0,)), ParamSlice("2.weight", (("narrow", 0, 0, 2),), (1,))),
    ],
)
def test_what_is_no_group_is_caught(slices):
    [found] = check(model(), [NeuronGroup("half", "unit", 8, (), slices)])
    assert found.is_false


class Shuffled(nn.Module):
    """Two branches whose channels are taken in turn, then halves of them by two units, as in ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        x = F.channel_shuffle(torch.cat([self.left(x).relu(), self.right(x).relu()], 1), 2)
        for unit in (self.first, self.second):
            kept, changed = x.chunk(2, 1)
            x = F.channel_shuffle(torch.cat([kept, unit(changed).tanh()], 1), 2)
        return self.head(x).mean((2, 3))


class InTurn(nn.Module):
    """Units that gate their neighbours, and units taken by turns."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 12), nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x):
        h = self.first(x)
        h = self.second(h[:, ::2] * h[:, 1::2].sigmoid())
        return self.head(torch.cat([h[:, ::2].sin(), h[:, 1::2].exp()], 1))


@pytest.mark.parametrize(
    ("built", "sizes"),
    [
        ((Shuffled, (2, 3, 6, 6)), [2, 2, 4, 4, 4, 8]),
        ((InTurn, (4, 5)), [5, 5, 6]),
    ],
    ids=["shuffled", "in turn"],
)
def test_units_that_are_taken_by_turns(built, sizes):
    torch.manual_seed(0)
    model, inputs = built[0](), torch.randn(*built[1])
    groups = find_neuron_groups(model, inputs)
    assert sorted(group.n for group in groups) == sizes
    assert {group.status for group in groups} == {"verified"}
    found = check((model, inputs), groups)
    assert not any(one.is_false for one in found)
    assert all(one.is_caught for one in found)


def test_twenty_models_of_the_zoo():
    assert len(set(MODELS)) == 20
    assert set(MODELS) <= {entry.name for entry in ZOO}


def test_a_training_in_which_rounding_decides_says_nothing():
    """In a chaotic map each of 60 steps doubles what the last digit holds."""

    class Chaos(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.first(x).sigmoid()
            for _ in range(60):
                h = 3.99 * h * (1 - h)
            return self.head(h)

    torch.manual_seed(0)
    chaos = Chaos()
    slices = (ParamSlice("first.weight"), ParamSlice("head.weight", dims=(1,)))  # without the bias
    [found] = check((chaos, torch.randn(4, 5)), [NeuronGroup("half", "unit", 8, (), slices)])
    assert found.is_open
    assert not found.is_false
    assert not found.is_caught
