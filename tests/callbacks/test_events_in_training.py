"""Every event, made by a real training; and a replay of its record makes the same ones."""

import itertools
import json
import math
import re
from dataclasses import replace

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor, read_record
from lightning_topo._cli import main
from lightning_topo.outputs.page._outcome import history
from lightning_topo.phases import DETECTED, replay
from tests.callbacks.training import Classifier, fit, happened, loader


def events(tmp_path, module, probes=None, extra=(), **options):
    """The events of a training, live and by replay alike."""
    probes = probes or [Distortion(every_n_steps=1), Persistence(every_n_steps=1), Sharpness(every_n_steps=1)]
    monitor = TopologyMonitor(probes, report=False, max_overhead=None)
    trainer = fit(module, [*extra, monitor], root=tmp_path, **options)
    record = read_record(monitor.dirpath)
    assert tuple(monitor.events) == record.events or any(e.value != e.value for e in record.events)
    live = [(e.name, e.step, e.group, e.message) for e in record.events if e.name in DETECTED]
    again = [(e.name, e.step, e.group, e.message) for e in replay(record.measurements).detected]
    assert live == again
    assert [e.step for e in record.events] == sorted(e.step for e in record.events)
    # The report needs none of the events that were recorded: it makes them, and the phase, out of the measurements.
    past = history(replace(record, events=tuple(e for e in record.events if e.name not in DETECTED)))
    assert [(e.name, e.step, e.group, e.message) for e in past.events if e.name in DETECTED] == live
    assert past.outcome.phase == int(trainer.callback_metrics["topology/phase"])
    assert all(e.message and e.remedy for e in record.events)
    return record.events


def named(found, name):
    return [e for e in found if e.name == name]


class Regression(Classifier):
    """The mean squared error, which grows without bound when the learning rate is too large."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), nn.functional.one_hot(y, 3).float())


class Shallow(Classifier):
    """One hidden layer, initialised at a hundredth."""

    def __init__(self, **options):
        super().__init__(**options)
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.01)


def test_what_becomes_of_neurons_after_a_small_initialisation_is_told_by_the_default_probes(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))
    data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()), batch_size=8)
    monitor = TopologyMonitor(report=False, max_overhead=None)
    trainer = fit(Shallow(lr=0.5), [monitor], root=tmp_path, data=data, max_epochs=6)
    (condensing, *later), (vanishing, *_) = (
        named(monitor.events, f"neurons_{name}") for name in ("condensing", "vanishing")
    )
    assert condensing.group == vanishing.group == "net.0"
    assert condensing.value < condensing.threshold <= 32
    assert later[-1].value < 16 < later[0].threshold
    assert "narrower layer" in condensing.remedy
    assert f"{vanishing.value:.0f} of 32 are far smaller" in vanishing.message
    assert vanishing.value >= 2
    keys = ("independent_neurons", "vanishing_neurons", "aligned_clusters", "effective_neurons", "largest_multiplicity")
    last = {key: float(trainer.callback_metrics[f"topology/net_0/{key}"]) for key in keys}
    assert 1 <= last["effective_neurons"] <= last["independent_neurons"] < 32
    assert "topology/net_0/measured_neurons" not in trainer.callback_metrics
    assert monitor.record.plot_fate("net.0").get_suptitle() == "net.0: what becomes of the neurons"


def test_a_divergence_is_an_instability_once(tmp_path):
    torch.manual_seed(0)
    found = events(tmp_path, Regression(lr=50.0), [Distortion(every_n_steps=1)], max_epochs=4)
    (event,) = named(found, "instability")
    assert not math.isfinite(event.value)
    assert event.severity == "error"
    assert "checkpoint" in event.remedy


class Quadratic(Classifier):
    """Curvature 3.3, nearly: sharpness ratio, eta lambda and r are 1.65, 3.3 and 3.3 times the learning rate."""

    def training_step(self, batch, batch_idx):
        bowl = 0.5 * 3.3 * sum((p**2).sum() for p in self.parameters())
        # The network's own loss, so that its neurons can be found; flat where the weights grow beyond all bounds.
        return bowl + 1e-3 * super().training_step(batch, batch_idx).tanh()


def test_a_loss_that_explodes_beyond_the_edge_is_an_instability(tmp_path):
    torch.manual_seed(0)
    probes = [Distortion(every_n_steps=1), Sharpness(every_n_steps=1)]
    found = events(tmp_path, Quadratic(lr=1.0), probes, max_epochs=3)
    (edge,) = named(found, "edge_of_stability_enter")
    assert edge.step == 3
    assert edge.value == pytest.approx(1.65, rel=0.01)
    (event,) = named(found, "instability")
    assert 3 < event.step <= 10
    assert event.value > event.threshold
    assert event.value == pytest.approx(1.65, rel=0.01)
    assert "far above where it stood before, and the edge ratio is 1.65" in event.message


class Slower(L.Callback):
    """Lowers the learning rate for all but the first six steps."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 6:
            trainer.optimizers[0].param_groups[0]["lr"] = 0.01


def test_a_learning_rate_that_comes_down_again_ends_what_it_began(tmp_path):
    torch.manual_seed(0)
    probes = [Distortion(every_n_steps=1), Sharpness(every_n_steps=2)]
    found = events(tmp_path, Quadratic(lr=0.6), probes, extra=[Slower()], data=loader(20, 1))
    assert [(e.name.value, e.step) for e in happened(found) if e.group == ""] == [
        ("curvature_bound_exceeded", 6),
        ("edge_of_stability_enter", 6),
        ("curvature_bound_restored", 12),
        ("edge_of_stability_exit", 12),  # the batches seen before count at the lower rate
    ]


def test_a_topology_is_restored_after_a_hundred_steps_below_the_critical_one(tmp_path):
    torch.manual_seed(0)
    found = events(tmp_path, Quadratic(lr=0.6), [Distortion(every_n_steps=1)], extra=[Slower()], data=loader(110, 1))
    assert [(e.name.value, e.step) for e in found if e.group == "net.0"] == [
        ("topology_breakdown", 1),
        ("topology_restored", 106),
    ]


def test_the_report_command_finds_phases_and_events_again_where_the_list_of_events_is_lost(tmp_path):
    torch.manual_seed(0)
    probes = [Distortion(every_n_steps=1), Persistence(every_n_steps=1), Sharpness(every_n_steps=1)]
    monitor = TopologyMonitor(probes, max_overhead=None, verbose=False)
    fit(Quadratic(lr=1.0), [monitor], root=tmp_path, max_epochs=3)
    events = monitor.dirpath / "events.jsonl"
    header, *lines = events.read_text().splitlines(keepends=True)
    kinds = {json.loads(line)["name"] for line in lines}
    assert {"instability", "edge_of_stability_enter", "topology_breakdown"} <= kinds
    events.write_text(header + "".join(line for line in lines if json.loads(line)["name"] not in DETECTED))
    assert main(["report", str(monitor.dirpath), "--out", str(tmp_path / "again.html")]) == 0

    def shown(page):
        data = re.search(r'id="page-data">(.*?)</script>', page.read_text(), re.DOTALL)[1]
        return json.loads(data)["runs"][0]

    live, again = shown(monitor.dirpath / "report.html"), shown(tmp_path / "again.html")
    assert live["events"]
    assert again["events"] == live["events"]
    assert again["ribbon"] == live["ribbon"]
    assert again["ribbon"]


def test_dead_neurons_that_decay_to_nothing_have_merged(tmp_path):
    torch.manual_seed(0)
    module = Classifier(lr=0.125, weight_decay=8.0)
    with torch.no_grad():
        module.net[3].bias[:2] = -50.0  # below any input: no gradient, in or out
        module.net[3].bias[2:] = 5.0
    found = events(tmp_path, module, [Distortion(every_n_steps=1)])
    # Such a decay leaves nothing but the last gradient: later, all units merge, and each fall is an event.
    event, *later = [e for e in named(found, "neurons_merged") if e.group == "net.3"]
    assert all(after.value < before.value for before, after in itertools.pairwise([event, *later]))
    assert event.value == 5.0
    assert event.step == 1


def twin(module):
    """Give the first two hidden units the same weights."""
    with torch.no_grad():
        module.net[0].weight[1] = module.net[0].weight[0]
        module.net[0].bias[1] = module.net[0].bias[0]
        reader = next(layer for layer in module.net[1:] if isinstance(layer, nn.Linear))
        reader.weight[:, 1] = reader.weight[:, 0]
    return module


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_dropout_parts_equal_neurons_and_breaks_the_equivariance(tmp_path, optimizer):
    torch.manual_seed(0)
    found = events(tmp_path, twin(Classifier(dropout=0.5, optimizer=optimizer, lr=0.01)), [Distortion(every_n_steps=1)])
    (event,) = named(found, "equivariance_broken")
    assert event.group == "net.0"
    assert event.step <= 3
    assert named(found, "topology_breakdown")


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize("every", [1, 3])
def test_equal_neurons_stay_equal_under_an_equivariant_rule(tmp_path, optimizer, every):
    torch.manual_seed(0)
    module = twin(Classifier(optimizer=optimizer, lr=0.05))
    found = events(tmp_path, module, [Distortion(every_n_steps=every)], max_epochs=3)
    assert not named(found, "equivariance_broken")
    assert not named(found, "neurons_merged")


def test_equal_parameters_with_different_momenta_may_part(tmp_path):
    class Unequal(L.Callback):
        """Before the 5th batch, makes two units equal in their parameters alone."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 4:
                twin(pl_module)

    torch.manual_seed(0)
    found = events(
        tmp_path, Classifier(momentum=0.9), [Distortion(every_n_steps=1)], extra=[Unequal()], data=loader(128)
    )
    assert not named(found, "equivariance_broken")
    (event,) = named(found, "outside_change")
    assert event.step == 4


def test_large_steps_change_betti_numbers_and_make_diagrams_jump(tmp_path):
    torch.manual_seed(0)
    module = Classifier(width=24, lr=3.0)
    found = events(tmp_path, module, [Distortion(every_n_steps=1), Persistence(every_n_steps=1)], max_epochs=4)
    assert named(found, "betti_changed")
    jumps = named(found, "diagram_jump")
    assert jumps
    for event in jumps:
        assert event.value > event.threshold
        assert "distortion in between allows" in event.message
    for event in named(found, "betti_changed"):
        assert event.value != event.threshold


def test_small_steps_do_not(tmp_path):
    torch.manual_seed(0)
    found = events(tmp_path, Classifier(width=24, lr=1e-3), max_epochs=2)
    assert happened(found) == []
