"""Layers frozen, thawed, rewritten and replaced at random: what is certified of each step holds of whole neurons."""

import random

import pytest
import torch
from torch import nn

from lightning_topo import Distortion
from lightning_topo.geometry import step_distortion
from tests.watch.driving import LowRank, Watched

N_STEPS = 20


def network(chance):
    """Hidden layers with and without adapters, of which about half is frozen."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    for k in (0, 2):
        model[k] = LowRank(model[k]) if chance.random() < 0.5 else model[k]
    for parameter in model.parameters():
        parameter.requires_grad_(chance.random() < 0.5)
    model[4].bias.requires_grad_(True)
    return model


@torch.no_grad()
def disturb(model, chance):
    """Freeze, thaw, rewrite or replace one parameter, or the layer of an adapter."""
    named = list(model.named_parameters())
    frozen = [(name, p) for name, p in named if not p.requires_grad]
    name, parameter = chance.choice(frozen or named)
    size = chance.choice((0.01, 0.5, 2.0))
    match chance.choice(("freeze", "thaw", "in place", "uncounted", "another", "another module")):
        case "freeze":
            _, parameter = chance.choice([(name, p) for name, p in named if name != "4.bias"])
            parameter.requires_grad_(False)
            parameter.grad = None
        case "thaw":
            parameter.requires_grad_(True)
        case "in place" if frozen:
            parameter.mul_(size)
        case "uncounted" if frozen:
            parameter.data.mul_(size)
        case "another" if frozen:
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, nn.Parameter(size * parameter, requires_grad=False))
        case "another module":
            for layer in model:
                if isinstance(layer, LowRank) and not any(p.requires_grad for p in layer.base.parameters()):
                    layer.base = nn.Linear(layer.base.in_features, layer.base.out_features).requires_grad_(False)


def ratio(group, before, after):
    blocks = zip(group.gather(before).split(group.n), group.gather(after).split(group.n), strict=True)
    return max(step_distortion(*pair).critical_ratio for pair in blocks)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_certified_holds_of_whole_neurons(seed, monkeypatch):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    model = network(chance)
    monkeypatch.setattr("tests.watch.driving.two_layers", lambda: model)
    watched = Watched([Distortion(chance.choice((1, 3, 50)))], max_overhead=chance.choice((None, 1e-9)))
    truth = {}
    for step in range(1, N_STEPS + 1):
        if chance.random() < 0.4:
            disturb(model, chance)
            watched.optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        watched.batch()
        after = dict(model.named_parameters())
        truth |= {(step, group.name): ratio(group, before, after) for group in watched.watch.groups}
    watched.watch.close()
    exact = {(step, group): values["critical_ratio"] for step, group, values in watched.kept.of("distortion")}
    known = {at: found for at, found in exact.items() if at in truth}
    assert known == pytest.approx({at: truth[at] for at in known}, rel=1e-3, abs=1e-7)
    bounds = {
        (step, group): values["bound"]
        for last, group, values in watched.kept.of("coverage")
        if values["state"] == 2.0
        for step in range(int(values["from"]) + 1, last + 1)
    }
    assert len(known) + len(bounds) >= N_STEPS // 2
    assert [at for at, bound in bounds.items() if truth.get(at, 0.0) > bound * (1 + 1e-6)] == []
