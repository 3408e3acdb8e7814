"""Samples that cannot be renewed: the sharpness goes on at the old ones, and says so once, until a step is accepted."""

import pytest
import torch
from torch.nn import functional as F

from lightning_topo import Sharpness, TopologyMonitor, read_record
from lightning_topo.outputs.page import render_page
from tests.callbacks.training import Classifier, fit, loader


class Rounded(torch.autograd.Function):
    """Straight-through: what it hands back is not its derivative, and a step with it cannot be replayed."""

    @staticmethod
    def forward(ctx, x):
        return (64 * x).round() / 64

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class SometimesOpaque(Classifier):
    """Rounds its logits in the steps from `first` to `last`."""

    first, last = 7, 14

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        is_opaque = self.first <= self.trainer.global_step + 1 <= self.last
        return F.cross_entropy(Rounded.apply(logits) if is_opaque else logits, y)


def gaps(module, root, **options):
    monitor = TopologyMonitor([Sharpness(every_n_steps=2, **options)], report=False, verbose=False, on_error="raise")
    fit(module, [monitor], root=root, data=loader(160), max_steps=20)
    assert len([m for m in monitor.record.measurements if m.probe == "sharpness"]) == 10
    return monitor, [event for event in monitor.events if event.name == "gap"]


def test_it_is_said_once_with_the_reason_and_the_samples_and_again_when_it_is_over(tmp_path):
    monitor, [stale, renewed] = gaps(SometimesOpaque(), tmp_path)
    assert (stale.step, stale.severity, stale.value) == (8, "warn", 6.0)
    assert "samples of step 6 and before: step 8 cannot be replayed" in stale.message
    assert "Rounded" in stale.message
    assert "loss_fn" in stale.remedy
    assert (renewed.step, renewed.severity) == (16, "info")
    recorded = read_record(monitor.dirpath)
    assert [event.message for event in recorded.events if event.name == "gap"] == [stale.message, renewed.message]
    page = render_page([recorded])
    assert "step 8 cannot be replayed" in page


def test_to_the_end_it_is_said_once(tmp_path):
    module = SometimesOpaque()
    module.last = 99
    [stale] = gaps(module, tmp_path)[1]
    assert stale.value == 6.0


def test_a_loss_of_its_own_needs_no_samples(tmp_path):
    def loss_fn(module, batch):
        return F.cross_entropy(module.net(batch[0]), batch[1])

    assert gaps(SometimesOpaque(), tmp_path, loss_fn=loss_fn)[1] == []


@pytest.mark.parametrize("first", [1, 99])
def test_a_training_without_such_a_change_has_no_word_of_it(tmp_path, first):
    module = SometimesOpaque()
    module.first, module.last = first, 99
    monitor = TopologyMonitor([Sharpness(every_n_steps=2)], report=False, verbose=False)
    fit(module, [monitor], root=tmp_path, data=loader(160), max_steps=20)
    assert [event for event in monitor.events if event.name == "gap"] == []
    assert ("probe_failed" in {event.name for event in monitor.events}) == (first == 1)
