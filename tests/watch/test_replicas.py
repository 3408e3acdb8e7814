"""Processes that should train the same model: told apart by a few entries."""

import math

import torch
from torch import nn

from lightning_topo._watch.replicas import sample_of, unlike


def test_a_sample_is_one_entry_of_each_of_a_few_trained_parameters():
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
    module[0].weight.requires_grad_(False)
    sample = sample_of(module)
    assert 40 <= len(sample) <= 64
    assert "0.weight" not in sample
    named = dict(module.named_parameters())
    assert all(
        value == abs(float(named[name].detach()[tuple(size // 2 for size in named[name].shape)]))
        for name, value in sample.items()
    )


def test_complex_sparse_empty_and_meta_parameters_do_no_harm():
    module = nn.Module()
    module.complex = nn.Parameter(torch.tensor([3 + 4j]))
    module.empty = nn.Parameter(torch.zeros(0))
    module.meta = nn.Parameter(torch.zeros(2, device="meta"))
    module.sparse = nn.Parameter(torch.eye(2).to_sparse())
    assert sample_of(module) == {"complex": 5.0}


def test_rounding_is_no_difference_and_nan_is_alike():
    one = {"w": 1.0, "b": math.nan}
    assert unlike([one, {"w": 1.0 + 1e-6, "b": math.nan}]) is None
    assert unlike([one, one, {"w": 1.1, "b": math.nan}]) == (2, ["w"])
    assert unlike([one, {"w": 1.0, "b": 0.0}]) == (1, ["b"])


def test_another_module_has_other_names():
    assert unlike([{"w": 1.0}, {"w": 1.0, "v": 1.0}]) == (1, ["v"])
    assert unlike([{}, {}]) is None
    assert unlike([]) is unlike([{}, {"w": 1.0}]) is unlike([{"w": 1.0}, {}]) is None
