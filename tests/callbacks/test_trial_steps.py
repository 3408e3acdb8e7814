"""Trial steps: taken as in training, and then bitwise undone."""

from itertools import islice

import lightning as L
import pytest
import torch
from torch import nn

from lightning_topo.callbacks._trial_batches import trial_batches
from lightning_topo.callbacks._trial_steps import base_learning_rate, on_trial, set_learning_rate, take_step
from tests.callbacks.test_lr_finder import Rates, fast
from tests.callbacks.training import Classifier, fit


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_gradients_and_optimizer_state_are_there_again_also_after_an_error(tmp_path):
    class Fails(Rates):
        def on_train_start(self):
            self.n = 0

        def training_step(self, batch, batch_idx):
            if self.trainer.optimizers[0].param_groups[0]["lr"] > 1.0:
                raise KeyError("no such batch")
            return super().training_step(batch, batch_idx)

    module = Fails(optimizer=torch.optim.Adam)
    start = {name: p.clone() for name, p in module.state_dict().items()}
    optimizer = module.make_optimizer()
    module.make_optimizer = lambda: optimizer
    with pytest.raises(KeyError, match="no such batch"):
        fit(module, [fast()], root=tmp_path)
    assert all(torch.equal(p, start[name]) for name, p in module.state_dict().items())
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(p.grad is None for p in module.parameters())


class Tries(L.Callback):
    """Steps beforehand as the training will take them, and what the training then does."""

    def __init__(self, n_batches=1, n_steps=3):
        self.n_batches, self.n_steps = n_batches, n_steps
        self.tried, self.taken, self.losses = [], [], []

    def on_train_start(self, trainer, pl_module):
        before = copies(pl_module)
        with on_trial(trainer, pl_module, 0):
            batches = trial_batches(trainer)
            for _ in range(self.n_steps):
                self.losses.append(take_step(trainer, pl_module, list(islice(batches, self.n_batches))))
                self.tried.append(copies(pl_module))
            self.inside = trainer.callbacks, [type(logger).__name__ for logger in trainer.loggers]
        assert same(before, copies(pl_module))
        assert not same(before, self.tried[0])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % self.n_batches == 0:
            self.taken.append(copies(pl_module))


def copies(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": torch.optim.Adam}, {"momentum": 0.9, "norm": True}], ids=["sgd", "adam", "norm"]
)
def test_a_trial_step_is_the_step_that_the_training_takes(tmp_path, options):
    tries = Tries()
    fit(Classifier(**options), [tries], root=tmp_path, gradient_clip_val=0.5)
    for tried, taken in zip(tries.tried, tries.taken[:3], strict=True):
        assert same(tried, taken)


def test_a_trial_step_over_several_batches_is_one_of_accumulated_batches(tmp_path):
    tries = Tries(n_batches=4, n_steps=2)
    fit(Classifier(), [tries], root=tmp_path, accumulate_grad_batches=4)
    for tried, taken in zip(tries.tried, tries.taken, strict=True):
        for name, value in tried.items():
            torch.testing.assert_close(value, taken[name])


def test_callbacks_and_loggers_take_no_part_and_are_there_again(tmp_path):
    tries = Tries()
    trainer = fit(Classifier(), [tries], root=tmp_path, logger=L.pytorch.loggers.CSVLogger(tmp_path))
    assert tries.inside == ([], ["DummyLogger"])
    assert tries in trainer.callbacks
    assert type(trainer.logger).__name__ == "CSVLogger"
    assert len(tries.taken) == 8
    assert all(loss > 0.0 for loss in tries.losses)


def test_a_training_step_without_a_loss_is_an_error(tmp_path):
    class Silent(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if self.trainer.callbacks else None

    with pytest.raises(ValueError, match="expected a loss from training_step, got NoneType"):
        fit(Silent(), [Tries()], root=tmp_path)


def test_all_parameter_groups_keep_their_ratio_to_the_first():
    one, two, three = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    tensor = torch.tensor(0.4)
    groups = [{"params": [one], "lr": 0.1}, {"params": [two], "lr": 0.02}, {"params": [three], "lr": tensor}]
    optimizer = torch.optim.SGD(groups)
    set_learning_rate(optimizer, 0.5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.5, 0.1, 2.0])
    assert optimizer.param_groups[2]["lr"] is tensor
    torch.optim.lr_scheduler.LinearLR(optimizer, 0.1)  # warms up from a tenth
    assert base_learning_rate(optimizer) == pytest.approx(0.5)
    set_learning_rate(optimizer, 1.0)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([1.0, 0.2, 4.0])
