"""A look before training: the neurons, and the loss on as many samples as are enough, with nothing moved."""

import lightning as L
import pytest
import torch
from torch import nn

from lightning_topo.callbacks._trial_look import TrialLook
from tests.callbacks.training import Classifier, dataset, fit, loader


class Looks(L.Callback):
    def __init__(self, declared=None):
        self.declared = declared

    def on_train_start(self, trainer, pl_module):
        before = [p.detach().clone() for p in pl_module.parameters()]
        random = torch.get_rng_state()
        self.found = TrialLook.of(trainer, pl_module, self.declared, seed=0)
        with self.found.loss(None) as loss:
            self.loss, self.n_samples = float(loss().detach()), loss.n_samples
        assert all(torch.equal(p, value) for p, value in zip(pl_module.parameters(), before, strict=True))
        assert all(p.grad is None for p in pl_module.parameters())
        assert torch.equal(torch.get_rng_state(), random)


def looked(tmp_path, module, n, **options):
    looks = Looks(**options)
    fit(module, [looks], root=tmp_path, data=loader(n), max_steps=1)
    return looks


@pytest.mark.parametrize(("n", "n_samples"), [(64, 64), (512, 256)])
def test_the_loss_is_that_of_the_first_samples_as_they_come(tmp_path, n, n_samples):
    """All samples where they are few, else 256 of them; the loader here does not shuffle."""
    torch.manual_seed(0)
    module = Classifier()
    x, y = dataset(n).tensors
    with torch.no_grad():
        truth = nn.functional.cross_entropy(module.net(x[:n_samples]), y[:n_samples])
    looks = looked(tmp_path, module, n)
    assert looks.n_samples == n_samples
    assert looks.loss == pytest.approx(float(truth), rel=1e-5)


def test_the_groups_are_found_in_the_trial_losses_alone(tmp_path):
    found = looked(tmp_path, Classifier(), 64).found
    assert [(group.name, group.n, group.status) for group in found.groups] == [
        ("net.0", 8, "verified"),
        ("net.3", 6, "verified"),
    ]
    assert found.problems == ""
    assert found.ranks.size == 1


def test_declared_groups_are_taken_and_without_any_the_reason_is_told(tmp_path):
    every = looked(tmp_path, Classifier(), 64).found.groups
    assert [group.name for group in looked(tmp_path, Classifier(), 64, declared=every[:1]).found.groups] == ["net.0"]

    class Flat(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

    flat = looked(tmp_path, Flat(), 64).found
    assert (flat.groups, flat.problems) == (
        (),
        "No neurons found: the module has no group of two or more exchangeable neurons of the usual kinds "
        "(net.weight, the largest parameter: axis 0: classes; axis 1: an axis of the data, its targets included, or of "
        "a constant).",
    )
