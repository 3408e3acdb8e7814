"""How many times a loss is differentiated, and that nothing is left on it."""

import io
import warnings

import pytest
import torch
from torch import nn

from lightning_topo import Sharpness, TopologyMonitor
from lightning_topo._watch.loss_multiple import LossMultiple
from tests.callbacks.training import Classifier, fit


@pytest.mark.parametrize("used", [lambda loss: loss, lambda loss: -0.5 * loss, lambda loss: loss / 4 + 1])
def test_the_gradient_that_arrives_is_the_multiple(used):
    parameter = nn.Parameter(torch.ones(3))
    loss, multiple = parameter.square().sum(), LossMultiple()
    multiple.listen(loss)
    used(loss).backward()
    assert multiple.take() == pytest.approx(float(parameter.grad[0]) / 2.0)
    assert not loss._backward_hooks


def test_what_has_no_gradient_or_is_not_differentiated_tells_nothing():
    multiple = LossMultiple()
    for loss in (torch.ones(()), torch.ones(2, requires_grad=True) * 2, torch.ones((), requires_grad=True) * 2):
        multiple.listen(loss)
        assert multiple.take() is None
        assert not loss._backward_hooks


class Keeping(Classifier):
    """Saves its loss at the end of each step."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.warned = getattr(self, "warned", [])
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.save(self.loss, io.BytesIO())
        self.warned += [str(warning.message) for warning in found]

    def training_step(self, batch, batch_idx):
        self.loss = super().training_step(batch, batch_idx)
        return self.loss


def test_a_user_s_loss_can_be_saved_as_without_us(tmp_path):
    module = Keeping()
    fit(module, [TopologyMonitor([Sharpness(every_n_steps=1)], verbose=False, report=False)], root=tmp_path)
    assert [message for message in module.warned if "hook" in message] == []
