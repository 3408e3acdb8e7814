"""The guard of a loop: no update above the limit, and no training that it cannot guard."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_topo import Distortion, TopologyWatch
from lightning_topo.loops._guard import LoopGuard
from lightning_topo.loops._training import LoopTraining
from tests.loops.by_hand import LIMIT, copies, iterate, ratio, watching
from tests.loops.loops import Net, batches, sgd


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_no_step_is_above_max_ratio(tmp_path, optimizer):
    lr = 30.0 if optimizer is torch.optim.SGD else 1.0
    model = Net()
    made = optimizer(model.parameters(), lr=lr)
    seen = [copies(model)]
    for batch in batches():
        iterate(model, made, batch, 0, 1, lambda loss: loss)
        seen.append(copies(model))
    assert max(ratio(*pair) for pair in pairwise(seen)) > 1.0

    model = Net()
    made = optimizer(model.parameters(), lr=lr)
    seen = [copies(model)]
    with watching(model, made, tmp_path, probes=[Distortion(every_n_steps=1)], max_ratio=LIMIT) as watch:
        for _ in range(3):
            for batch in batches():
                with watch.step():
                    iterate(model, made, batch, 0, 1, watch.loss)
                seen.append(copies(model))
    ratios = [ratio(*pair) for pair in pairwise(seen)]
    assert 0.99 * LIMIT < max(ratios) <= LIMIT
    assert watch.guard.n_updates == 24
    assert watch.guard.n_held > watch.guard.n_dropped
    measured = [m.values for m in watch.record.measurements if m.probe == "distortion"]
    assert max(values["critical_ratio"] for values in measured) <= LIMIT
    assert len([v for v in measured if "proposed_critical_ratio" in v]) == 2 * watch.guard.n_held
    assert "topology_breakdown" not in [str(event.name) for event in watch.events]


def test_a_guard_that_cannot_see_updates_ends_the_training(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)

    def loop():
        with watching(model, optimizer, tmp_path, max_ratio=LIMIT) as watch:
            for batch in batches():
                with watch.step():
                    watch.loss(model(**batch)["loss"]).backward()
                    with torch.no_grad():
                        for p in model.parameters():
                            p -= 0.1 * p.grad
                    optimizer.zero_grad()

    with pytest.raises(RuntimeError, match=r"cannot hold what it cannot see: .*SGD does not step"):
        loop()


def test_a_guard_needs_neurons(tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loop():
        with watching(model, optimizer, tmp_path, groups="auto", max_ratio=LIMIT) as watch, watch.step():
            watch.loss(model(torch.ones(1, 4)).sum()).backward()
            optimizer.step()

    with pytest.raises(RuntimeError, match=r"no neurons to work on.*declare_neurons"):
        loop()


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.5, float("nan")])
def test_a_limit_that_protects_nothing_is_refused(limit):
    with pytest.raises(ValueError, match="max_ratio between 0 and 1"):
        LoopGuard(limit)


def test_what_it_cannot_hold_is_refused_beforehand():
    net = nn.Linear(2, 2)
    guard = LoopGuard(LIMIT)
    with pytest.raises(ValueError, match="max_ratio=None with LBFGS"):
        guard.refuse(LoopTraining.of(net, [torch.optim.SGD(net.parameters()), torch.optim.LBFGS(net.parameters())]))
    guard.refuse(LoopTraining.of(net, torch.optim.SGD(net.parameters())))


def test_its_counts_come_back_from_a_checkpoint_and_what_is_none_is_not_taken():
    guard = LoopGuard(LIMIT)
    guard.restore({"n_updates": 7, "n_held": 3, "n_dropped": 1, "what else": 9})
    assert guard.counts() == {"n_updates": 7, "n_held": 3, "n_dropped": 1}
    for damaged in ({"n_updates": 8}, {"n_updates": 8, "n_held": "many", "n_dropped": 0}):
        with pytest.raises((KeyError, ValueError)):
            guard.restore(damaged)
    assert guard.counts() == {"n_updates": 7, "n_held": 3, "n_dropped": 1}


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("guards", [False, True])
def test_what_keeps_a_gradient_is_moved_though_it_is_frozen(tmp_path, optimizer, guards):
    model = Net()
    made = {
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.3),
    }[optimizer]()
    limit = {"max_ratio": LIMIT} if guards else {}
    seen, ratios = [copies(model)], []
    with watching(model, made, tmp_path, probes=[Distortion(every_n_steps=1)], **limit) as watch:
        for k, batch in enumerate([*batches(), *batches()]):
            if k == 4:
                for parameter in list(model.parameters())[:2]:
                    parameter.requires_grad_(False)
                for group in made.param_groups:
                    group["lr"] *= 20
            with watch.step():
                made.zero_grad(set_to_none=False)
                watch.loss(model(**batch)["loss"]).backward()
                made.step()
            seen.append(copies(model))
            ratios.append(ratio(*seen[-2:]))
    assert any((seen[-1][name] != seen[4][name]).any() for name in list(seen[0])[:2])
    worst: dict[int, float] = {}
    for m in watch.record.measurements:
        if m.probe == "distortion":
            worst[m.step] = max(m.values["critical_ratio"], worst.get(m.step, 0.0))
    assert [worst[step] for step in range(1, len(ratios) + 1)] == pytest.approx(ratios, rel=1e-4)
    assert max(ratios) <= LIMIT if guards else max(ratios) > 1.0
    assert "outside_change" not in [str(event.name) for event in watch.events]


def test_a_guard_holds_what_the_monitor_measures_also_of_partly_frozen_neurons(tmp_path):
    model = Net()
    made = sgd(model, 30.0)
    options = {"probes": [Distortion(every_n_steps=1)], "max_ratio": LIMIT}
    with watching(model, made, tmp_path, **options) as watch:
        for k, batch in enumerate([*batches(), *batches()]):
            if k == 4:
                for parameter in list(model.parameters())[:2]:
                    parameter.requires_grad_(False)
            with watch.step():
                made.zero_grad()
                watch.loss(model(**batch)["loss"]).backward()
                made.step()
    assert watch.guard.n_held > 0
    found = [m.values["critical_ratio"] for m in watch.record.measurements if m.probe == "distortion"]
    assert len(found) > 0
    assert "topology_breakdown" not in [str(event.name) for event in watch.events]


def test_of_networks_that_are_frozen_in_turn_each_keeps_its_bounds(tmp_path):
    torch.manual_seed(0)
    nets = torch.nn.ModuleDict({"a": Net(), "b": Net()})
    turns = {name: sgd(net, 0.05) for name, net in nets.items()}
    with TopologyWatch(
        nets, list(turns.values()), [Distortion()], dirpath=tmp_path / "t", max_ratio=LIMIT, report=False
    ) as watch:
        for batch in [*batches(), *batches()]:
            for name, made in turns.items():
                with watch.step():
                    nets[name].requires_grad_(True)
                    nets["b" if name == "a" else "a"].requires_grad_(False)
                    made.zero_grad()
                    watch.loss(nets[name](**batch)["loss"]).backward()
                    made.step()
    assert watch.guard.n_updates == 32
    assert watch.guard._ratios.n_exact <= 6
