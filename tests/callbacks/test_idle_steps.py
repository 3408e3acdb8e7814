"""Batches without a loss or an update, and hooks outside of a training: nothing is lost by them, or said of them."""

import warnings

import lightning as L
import pytest
import torch
from torch import nn

from lightning_topo import Distortion, TopologyMonitor, TopologyStepGuard, read_record
from lightning_topo.measurement import StepState
from tests.callbacks.training import Classifier, fit, loader


class WithoutFirstLosses(Classifier):
    def training_step(self, batch, batch_idx):
        return None if self.global_step < 2 else super().training_step(batch, batch_idx)


class Skipping(Classifier):
    """Leaves out the update of every third batch, which Lightning counts all the same."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx % 3 == 1:
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


def monitor_of(module, root, **options):
    monitor = TopologyMonitor([Distortion(every_n_steps=1000)], report=False, verbose=False, on_error="raise")
    fit(module, [monitor], root=root, data=loader(), max_epochs=2, **options)
    return monitor


def states(monitor):
    return {
        (step, m.group): StepState(int(m.values["state"]))
        for m in read_record(monitor.dirpath).measurements
        if m.probe == "coverage"
        for step in range(int(m.values["from"]) + 1, m.step + 1)
    }


@pytest.mark.parametrize("module", [WithoutFirstLosses, Skipping])
def test_steps_that_move_nothing_are_certified_and_neurons_come_from_the_first_that_does(tmp_path, module):
    monitor = monitor_of(module(), tmp_path)
    assert {group.status for group in monitor.groups} == {"verified"}
    found = states(monitor)
    assert {step for step, _ in found} == set(
        range(1, 16 if module is Skipping else 17)
    )  # the last batch has no update
    assert all(state.certified for state in found.values())
    assert not [event for event in monitor.events if event.name in ("probe_failed", "gap", "unseen_step")]


def test_where_no_batch_has_a_loss_that_is_said(tmp_path):
    class Lossless(Classifier):
        def training_step(self, batch, batch_idx):
            return None

    monitor = monitor_of(Lossless(), tmp_path)
    assert any("no loss to follow" in event.message for event in monitor.events)


def test_validation_outside_of_a_training_is_none_of_its_business(tmp_path):
    class Validated(Classifier):
        def validation_step(self, batch, batch_idx):
            self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    module, monitor = Validated(), TopologyMonitor([Distortion()], report=False, verbose=False, on_error="raise")
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[monitor], default_root_dir=tmp_path, **options)
    trainer.validate(module, loader(), verbose=False)
    trainer.fit(module, loader(), loader())
    n_seen = len(read_record(monitor.dirpath).measurements)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.validate(module, loader(), verbose=False)
        trainer.test(type("Tested", (Validated,), {"test_step": Validated.validation_step})(), loader(), verbose=False)
    assert not [warning for warning in said if "opology" in str(warning.message)]
    assert len(read_record(monitor.dirpath).measurements) == n_seen


def test_what_a_trainer_knew_when_an_optimizer_raised_stays(tmp_path):
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            if self.state.setdefault("n", {"n": 0})["n"] == 5:
                raise RuntimeError("torn")
            self.state["n"]["n"] += 1
            return loss

    found = []
    for callbacks in ([], [TopologyMonitor([Distortion()], report=False, verbose=False)]):
        torch.manual_seed(0)
        module, kept = Classifier(optimizer=Failing), Kept()
        with pytest.raises(RuntimeError, match="torn"):
            fit(module, [*callbacks, kept], root=tmp_path, data=loader())
        found.append({k: float(v) for k, v in kept.trainer.callback_metrics.items() if not k.startswith("topology/")})
    assert found[0] == found[1] != {}


class Kept(L.Callback):
    def on_exception(self, trainer, pl_module, exception):
        self.trainer = trainer


@pytest.mark.parametrize("beside_a_monitor", [True, False])
def test_a_guard_looks_for_neurons_where_there_is_something_to_hold(tmp_path, beside_a_monitor):
    guard = TopologyStepGuard(0.5)
    monitors = [TopologyMonitor([Distortion()], report=False, verbose=False)] if beside_a_monitor else []
    fit(WithoutFirstLosses(), [*monitors, guard], root=tmp_path, data=loader(), max_epochs=2)
    assert {group.status for group in guard.groups} == {"verified"}
    assert guard.n_updates == 2 * len(loader())
