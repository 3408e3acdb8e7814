"""The independent check of groups: it passes what may be permuted, and catches what may not."""

import pytest
import torch
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
