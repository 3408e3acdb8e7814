"""Losses are kept without waiting for a device, and a broken one is known at once where it can be."""

import math

import torch

from lightning_topo._watch.losses import Losses


def kept(*losses):
    log = Losses()
    for step, loss in enumerate(losses, 1):
        log.note(step, loss)
    return log


def test_only_a_loss_that_is_not_finite_is_broken():
    assert not kept(1.0, torch.tensor(0.5)).is_broken()
    assert kept(1.0, torch.tensor(math.nan)).is_broken()
    assert kept(math.inf, 1.0).is_broken()


def test_what_is_taken_is_gone_and_what_is_no_loss_was_never_there():
    log = kept(1.0, torch.tensor([1.0, 2.0]), torch.tensor([[0.25]]), torch.tensor(1j), None)
    assert len(log) == 2
    assert log.take() == {1: 1.0, 3: 0.25}
    assert log.take() == {}
