"""Layers of which a part is trained: what begins equal there is told apart by what is frozen, and tears nothing."""

import lightning as L
import pytest
import torch
from torch import nn

from lightning_topo import Distortion, TopologyMonitor, TopologyStepGuard
from lightning_topo.neurons._partly_trained import REASON, told_apart_by_frozen
from tests.callbacks.training import fit


class Adapted(nn.Module):
    """A frozen layer with a trained part that begins without effect."""

    def __init__(self, kind):
        super().__init__()
        self.base = nn.Linear(4, 6)
        self.base.weight.requires_grad_(False)
        self.base.bias.requires_grad_(False)
        self.kind = kind
        if kind == "low rank":
            self.a, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.zeros(6, 3))
        elif kind == "nearly equal":
            self.scale = nn.Parameter(torch.zeros(6) + 1e-4 * torch.arange(6.0))
        else:
            self.scale = nn.Parameter(torch.ones(6) if kind == "scale" else torch.zeros(6))

    def forward(self, x):
        if self.kind == "low rank":
            return self.base(x) + x @ self.a.T @ self.b.T
        return self.base(x) * self.scale if self.kind == "scale" else self.base(x) + self.scale


class FineTuned(L.LightningModule):
    def __init__(self, kind, *, twins=False):
        super().__init__()
        self.layer, self.head = Adapted(kind), nn.Linear(6, 3)
        self.head.requires_grad_(False)
        if twins:
            with torch.no_grad():
                for weight in (self.layer.base.weight, self.layer.base.bias, self.head.weight.T):
                    weight[1] = weight[0]

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.head(torch.tanh(self.layer(batch[0]))), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


@pytest.mark.parametrize("kind", ["low rank", "scale", "shift"])
def test_what_begins_equal_over_frozen_weights_breaks_nothing(tmp_path, kind):
    torch.manual_seed(0)
    module = FineTuned(kind)
    monitor = TopologyMonitor(dirpath=tmp_path / "run", verbose=False)
    fit(module, [monitor], root=tmp_path, max_steps=6)
    assert "topology_breakdown" not in {event.name for event in monitor.events}
    # The directions between A and B are trained as a whole, and measured.
    assert [group.n for group in monitor.groups] == ([3] if kind == "low rank" else [])
    reasons = {one.param: one.reason for one in monitor.watch._neurons.finding.coverage if not one.groups}
    assert kind == "low rank" or reasons["layer.scale"] == REASON


def test_neurons_that_are_equal_as_a_whole_are_measured(tmp_path):
    torch.manual_seed(0)
    monitor = TopologyMonitor(dirpath=tmp_path / "run", verbose=False)
    fit(FineTuned("shift", twins=True), [monitor], root=tmp_path, max_steps=2)
    (group,) = monitor.groups
    values = {name: p.detach() for name, p in FineTuned("shift").named_parameters()}
    assert told_apart_by_frozen(group, values)
    assert not told_apart_by_frozen(group, values | {"layer.scale": torch.arange(6.0)})
    assert not told_apart_by_frozen(group, {"layer.scale": torch.zeros(6)})  # nothing frozen is known of it


def whole(module):
    base, layer = module.layer.base, module.layer
    return torch.cat([base.weight, base.bias[:, None], layer.scale[:, None], module.head.weight.T], 1).detach().double()


class Whole(L.Callback):
    """The critical ratio of each step of the whole neurons, and of what is trained of them, by brute force."""

    def __init__(self):
        self.ratios = []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.before = whole(module).clone(), module.layer.scale.detach().double()[:, None].clone()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        after = whole(module), module.layer.scale.detach().double()[:, None]
        i, j = torch.triu_indices(6, 6, 1)
        pairs = ((y - x, x) for x, y in zip(self.before, after, strict=True))
        self.ratios.append([float(((m[i] - m[j]).norm(dim=1) / (x[i] - x[j]).norm(dim=1)).max()) for m, x in pairs])


@pytest.mark.parametrize("guards", [False, True])
def test_a_step_that_is_critical_in_the_trained_part_alone_is_measured_on_whole_neurons(tmp_path, guards):
    torch.manual_seed(0)
    module, seen = FineTuned("nearly equal"), Whole()
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], dirpath=tmp_path / "run", verbose=False)
    guard = TopologyStepGuard(0.9)
    fit(module, [monitor, *([guard] if guards else []), seen], root=tmp_path, max_steps=6)
    [group] = monitor.groups
    assert {piece.param for piece in group.slices} > {"layer.base.weight", "layer.scale"}
    assert max(part for _, part in seen.ratios) > 5
    assert max(ratio for ratio, _ in seen.ratios) < 0.9
    assert guard.n_held == 0
    found = {m.step: m.values["critical_ratio"] for m in monitor.record.measurements if m.probe == "distortion"}
    for step, (ratio, part) in enumerate(seen.ratios, 1):
        assert found[step] == pytest.approx(ratio if part >= 1 else part, rel=1e-3)
    assert "topology_breakdown" not in {event.name for event in monitor.events}
