"""A Trainer as the engine sees it: how many steps there will be, whose loss it is, when an epoch ends."""

import lightning as L
import pytest
import torch
from torch import nn

from lightning_topo.callbacks._trainer_training import TrainerTraining
from tests.callbacks.training import Classifier, fit


class Asks(L.Callback):
    """What the training says of itself at every batch."""

    def __init__(self):
        self.epochs, self.steps, self.ends, self.losses, self.scales = [], [], [], [], []

    def on_train_start(self, trainer, pl_module):
        self.training = TrainerTraining(trainer, pl_module)
        self.planned, self.facts = self.training.planned_steps, self.training.facts()

    def on_before_backward(self, trainer, pl_module, loss):
        self.scales.append(self.training.loss_scale)
        self.scaled = float(loss.detach())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append(self.training.step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.epochs.append(self.training.epoch)
        self.ends.append(self.training.ends_epoch())
        self.losses.append((float(self.training.batch_loss(outputs)), self.scaled / self.scales[-1]))


class Records(Classifier):
    def __init__(self, **options):
        super().__init__(**options)
        self.own = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.own.append(float(loss.detach()))
        return loss


@pytest.mark.parametrize(
    ("options", "planned"),
    [
        ({"max_epochs": 3}, 24),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 9),  # the last of an epoch's eight batches are a step too
        ({"max_epochs": 3, "max_steps": 5}, 5),
        ({"max_epochs": -1, "max_steps": 5}, 5),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6),
    ],
)
def test_as_many_steps_are_planned_as_are_made(tmp_path, options, planned):
    asks = Asks()
    trainer = fit(Classifier(), [asks], root=tmp_path, **options)
    assert asks.planned == trainer.global_step == planned
    assert asks.steps[0] == 0
    assert asks.steps == sorted(asks.steps)


def test_a_training_without_end_has_no_plan(tmp_path):
    class Stops(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = True

    asks = Asks()
    fit(Classifier(), [asks, Stops()], root=tmp_path, max_epochs=-1)
    assert asks.planned is None


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_batchs_loss_is_the_modules_own_however_many_are_accumulated(tmp_path, accumulate):
    asks, module = Asks(), Records()
    fit(module, [asks], root=tmp_path, max_epochs=2, accumulate_grad_batches=accumulate)
    assert [undivided for undivided, _ in asks.losses] == pytest.approx(module.own)
    assert [unscaled for _, unscaled in asks.losses] == pytest.approx(module.own)
    assert asks.scales == [1.0 / accumulate] * 16
    assert asks.ends == ([False] * 7 + [True]) * 2
    assert asks.epochs == [0] * 8 + [1] * 8


def test_what_is_no_loss_is_none(tmp_path):
    asks = Asks()
    fit(Classifier(), [asks], root=tmp_path, max_steps=1)
    for outputs in (None, {}, {"loss": 3.0}, torch.ones(2), "loss"):
        assert asks.training.batch_loss(outputs) is None
    assert float(asks.training.batch_loss({"loss": torch.tensor([2.0])})) == 2.0


def test_facts_are_the_trainers(tmp_path):
    class Hyper(Classifier):
        def __init__(self, width=8, depth=2, extra=None):
            super().__init__(width)
            self.save_hyperparameters({"width": width, "depth": depth, "extra": extra, "layer": nn.Linear(1, 1)})

    asks, module = Asks(), Hyper()
    fit(module, [asks], root=tmp_path, max_steps=2, gradient_clip_val=0.5)
    wanted = {
        "optimizer": "SGD",
        "batch_size": 8,
        "accumulate_grad_batches": 1,
        "gradient_clip_val": 0.5,
        "precision": "32-true",
        "parameters": sum(p.numel() for p in module.parameters()),
        "planned_steps": 2,
        "processes": 1,
        "scheduler": "",
        "hparams": {"width": 8, "depth": 2, "extra": None},  # what is no plain value is left out
    }
    assert {name: asks.facts[name] for name in wanted} == wanted


def test_values_go_to_the_callback_metrics(tmp_path):
    asks = Asks()
    trainer = fit(Classifier(), [asks], root=tmp_path, max_steps=1)
    asks.training.publish({"topology/critical_ratio": torch.tensor(0.25)})
    assert float(trainer.callback_metrics["topology/critical_ratio"]) == 0.25
    assert asks.training.module is asks.training.root is trainer.lightning_module
