"""Batches whose end no hook sees: the rest of the epoch is skipped, or the data ends within a step."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.data import IterableDataset

from lightning_topo import Distortion, Sharpness, TopologyMonitor
from tests.callbacks.training import Classifier, dataset, fit, loader


class Skipping(Classifier):
    """Leaves out the rest of its first epochs, from the batch `at` on, and notes which modes it meets behind it."""

    def __init__(self, at):
        super().__init__()
        self.at, self.modes = at, []

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.current_epoch < 2 and batch_idx == self.at else None

    def on_train_epoch_end(self):
        self.modes += _get_current_dispatch_mode_stack()


class Endless(IterableDataset):
    def __iter__(self):
        return iter(dataset())


class Drawing(Skipping):
    """Takes its batches itself, as long as there are any."""

    def training_step(self, dataloader_iter):
        (x, y), _, _ = next(dataloader_iter)
        return torch.nn.functional.cross_entropy(self.net(x), y)


class Stopping(Skipping):
    """Ends an epoch in the middle of a step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx == self.at:
            raise StopIteration
        return loss


KINDS = {
    "first": lambda: (Skipping(0), loader()),
    "in the middle": lambda: (Skipping(3), loader()),
    "by the data": lambda: (Drawing(-1), torch.utils.data.DataLoader(Endless(), batch_size=8)),
    "within a step": lambda: (Stopping(3), loader()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_is_left_out_is_no_step_and_leaves_no_mode_behind(tmp_path, kind):
    weights = []
    for watch in (False, True):
        torch.manual_seed(0)
        module, data = KINDS[kind]()
        probes = [Distortion(every_n_steps=1), Sharpness(every_n_steps=1)]
        monitor = TopologyMonitor(probes, dirpath=tmp_path / "run", verbose=False, report=False, on_error="raise")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            trainer = fit(module, [monitor] if watch else [], root=tmp_path, data=data, max_epochs=4)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        assert module.modes == []
    assert torch.equal(*weights)
    assert trainer.global_step > 8
    assert [event.name for event in monitor.events if event.name not in ("unwatched_parameters", "gap")] == []
    assert {group.status for group in monitor.groups} == {"verified"}
