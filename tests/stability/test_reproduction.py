"""Every optimizer trains its way up to the edge of stability, and stays there: the ratio hovers at 1."""

import statistics

import pytest
import torch
from torch import nn

from lightning_topo.demo import digits
from lightning_topo.stability import curvature_sharpness, hessian, parameter_thresholds, scaled_sharpness

TRAININGS = {
    "sgd": (torch.optim.SGD, {"lr": 0.5}),
    "momentum": (torch.optim.SGD, {"lr": 0.5, "momentum": 0.9}),
    "dampening": (torch.optim.SGD, {"lr": 0.6, "momentum": 0.5, "dampening": 0.3}),
    "nesterov": (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 6e-3}),
    "amsgrad": (torch.optim.Adam, {"lr": 6e-3, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 6e-3, "weight_decay": 0.01}),
    "nadam": (torch.optim.NAdam, {"lr": 2e-3}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3}),
    "rmsprop-momentum-centered": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 2e-2}),
}


def ratios(kind, options, steps=300, every=20):
    """The sharpness ratio along a full-batch training of a 64-64-64-10 tanh network on digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    x, onehot = digits().tensors
    optimizer = kind(model.parameters(), **options)
    raw = scaled = None
    found = []

    def loss_fn():
        return 0.5 * ((model(x) - onehot) ** 2).sum(1).mean()

    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
        if step % every == 0:
            curvature = hessian(loss_fn, model.parameters())
            raw = curvature_sharpness(curvature, start=None if raw is None else raw.vector)
            thresholds = parameter_thresholds([optimizer], curvature.params, curvature.gradient).parameters
            scaled = scaled_sharpness(curvature, thresholds, raw, start=None if scaled is None else scaled.vector)
            found.append(scaled.ratio)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_the_ratio_hovers_at_one(name):
    late = ratios(*TRAININGS[name])[-7:]
    assert 0.9 < statistics.median(late) < 1.15
    assert max(late) < 1.4


def test_a_small_learning_rate_stays_far_from_it():
    assert max(ratios(torch.optim.Adam, {"lr": 1e-4}, steps=100)) < 0.3
