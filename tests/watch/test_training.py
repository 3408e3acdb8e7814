"""Every loop's training answers all that the engine asks of one."""

from contextlib import AbstractContextManager

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback

from lightning_topo._watch.ranks import Ranks
from lightning_topo._watch.training import Training
from lightning_topo.callbacks._trainer_training import TrainerTraining
from lightning_topo.loops._training import LoopTraining
from tests.callbacks.training import Classifier, fit
from tests.watch.driving import training_of, two_layers


class Asked(Callback):
    """Makes a training of its trainer, and asks it in every batch."""

    def __init__(self):
        self.training, self.answers, self.is_training = None, [], False

    def on_train_start(self, trainer, pl_module):
        self.training = TrainerTraining(trainer, pl_module)
        self.is_training = isinstance(self.training, Training)

    def on_train_batch_end(self, trainer, pl_module, *_):
        one = self.training
        self.answers.append((one.step, one.epoch, one.ends_epoch()))
        one.publish({"topology/x": torch.tensor(float(one.step))})


def test_a_trainer_counts_batches_that_led_to_an_update(tmp_path):
    asked = Asked()
    trainer = fit(Classifier(), [asked], root=tmp_path, max_epochs=2, accumulate_grad_batches=4, log_every_n_steps=3)
    assert asked.is_training
    # 8 batches an epoch; the batch that leads to the k-th update is over before that update is counted.
    steps = [step for step, _, _ in asked.answers]
    assert steps == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert [epoch for _, epoch, _ in asked.answers] == [0] * 8 + [1] * 8
    assert [k for k, (_, _, last) in enumerate(asked.answers) if last] == [7, 15]
    training = asked.training
    assert (training.planned_steps, training.epochs_agree, training.log_every_n_steps) == (4, True, 3)
    assert trainer.callback_metrics["topology/x"] == 3.0
    assert isinstance(training.module, L.LightningModule)


@pytest.mark.parametrize("planned", [None, 12])
def test_a_loop_answers_with_what_it_was_given(planned):
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = LoopTraining.of(model, optimizer, 5, planned)
    assert isinstance(training, Training)
    assert (training.module, training.root, list(training.optimizers)) == (model, model, [optimizer])
    assert (training.step, training.epoch, training.ends_epoch()) == (0, 0, False)
    assert (training.log_every_n_steps, training.planned_steps, training.epochs_agree) == (5, planned, True)
    assert isinstance(training.ranks, Ranks)
    assert isinstance(training.precision(), AbstractContextManager)


def test_facts_are_plain_values(tmp_path):
    asked = Asked()
    fit(Classifier(), [asked], root=tmp_path, limit_train_batches=1)
    for facts in (asked.training.facts(), training_of(two_layers()).facts()):
        assert facts["optimizer"] == "SGD"
        assert facts["processes"] == 1
        plain = [value for key, value in facts.items() if key != "hparams"]
        assert all(value is None or isinstance(value, bool | int | float | str) for value in plain)


def test_what_lacks_an_answer_is_no_training():
    class Half:
        module, ranks, log_every_n_steps = two_layers(), Ranks(), 0
        root = module
        optimizers, step, epoch, planned_steps = (), 0, 0, None

    assert not isinstance(Half(), Training)
