"""Bounds that are read just before the next update, as on a device that is not to be waited for: the same record."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_topo import Distortion, TopologyMonitor, read_record
from lightning_topo._watch import certifying as certifying
from tests.callbacks.training import Classifier, Weights, fit, happened, loader

LEAPS = (12, 26)


class Leaping(Classifier):
    """At two steps the learning rate is far too high; behind the second of them `Clipping` moves the weights."""

    def training_step(self, batch, batch_idx):
        self.optimizers().param_groups[0]["lr"] = 40.0 if self.global_step in LEAPS else 0.05
        return super().training_step(batch, batch_idx)


class ByHand(Leaping):
    """Two optimizers that take turns, each twice in some batches."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(1 + batch_idx % 2):
            optimizer = self.optimizers()[batch_idx % 2]
            optimizer.zero_grad()
            self.manual_backward(torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        layers = [m for m in self.net if isinstance(m, torch.nn.Linear)]
        return [torch.optim.Adam(layer.parameters(), lr=0.01) for layer in layers[:2]]


class Unseen(Callback):
    """Moves weights between the steps, by writes that no version counts."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % 3 == 0:
            for parameter in pl_module.parameters():
                parameter.data.mul_(0.999)


class Clipping(Callback):
    """Moves weights between the steps, in some of them."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % 3 == 0:
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.mul_(0.999)


KINDS = {
    "plain": (Leaping, {}, []),
    "accumulated": (Leaping, {"accumulate_grad_batches": 3}, []),
    "by hand": (ByHand, {}, []),
    "moved between": (Leaping, {}, [Clipping]),
    "moved between, unseen": (Leaping, {}, [Unseen]),
    "logged now and then": (Leaping, {"log_every_n_steps": 3}, []),
}


@pytest.mark.parametrize(("make", "options", "others"), KINDS.values(), ids=KINDS)
def test_the_record_is_that_of_bounds_read_at_once(tmp_path, monkeypatch, make, options, others):
    found, read = [], []
    for awaits in (False, True):
        monkeypatch.setattr(certifying, "waits", lambda device, awaits=awaits: awaits)
        finish = certifying.Certifying.finish
        monkeypatch.setattr(
            certifying.Certifying,
            "finish",
            lambda self, budget, stands, f=finish: (read.append(self.is_awaited), f(self, budget, stands=stands))[1],
        )
        torch.manual_seed(0)
        monitor, weights = (
            TopologyMonitor([Distortion(every_n_steps=7)], report=False, verbose=False, max_overhead=None),
            Weights(),
        )
        fit(
            make(),
            [monitor, *(other() for other in others), weights],
            root=tmp_path / str(awaits),
            max_epochs=5,
            data=loader(),
            **options,
        )
        record = read_record(monitor.dirpath)
        states = {
            (line.group, step): line.values["state"]
            for line in record.measurements
            if line.probe == "coverage"
            for step in range(int(line.values["from"]) + 1, line.step + 1)
        }
        events = [(event.name, event.step, event.group) for event in happened(monitor.events)]
        exact = {(m.group, m.step): m.values["critical_ratio"] for m in record.measurements if m.probe == "distortion"}
        found.append((states, sorted(events, key=str), exact, weights.seen[-1]))
        monkeypatch.undo()
    assert any(read), "nothing was awaited"
    (states, events, exact, last), (late_states, late_events, late_exact, late_last) = found
    assert all(torch.equal(last[name], late_last[name]) for name in last)
    assert states.keys() == late_states.keys()
    if others:  # a step whose end is gone when its bound is read is bounded or open, and never called exact
        moved = [key for key in exact if key[1] == LEAPS[1] + 1]
        assert moved
        assert not late_exact.keys() & set(moved)
        assert {key: value for key, value in late_exact.items() if key[1] <= LEAPS[1]} == {
            key: value for key, value in exact.items() if key[1] <= LEAPS[1]
        }
        return
    assert late_states == states
    assert late_events == events
    assert late_exact == exact
