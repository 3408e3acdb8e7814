"""Sharpness of steps with several losses and optimizers, in the orders that people write, against dense Hessians."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Sharpness, TopologyMonitor
from tests.callbacks.training import fit

LR = {"g": 0.05, "d": 0.1}


def judged(logits, truth):
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))


class Adversaries(L.LightningModule):
    def __init__(self, order):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization, self.order, self.n = False, order, -1
        self.g = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.d = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))

    def configure_optimizers(self):
        return [torch.optim.SGD(getattr(self, name).parameters(), lr=lr) for name, lr in LR.items()]

    def real(self, x):
        return judged(self.d(x), 1.0)

    def fake(self, x, apart=True):
        made = self.g(x)
        return judged(self.d(made.detach() if apart else made), 0.0)

    def fooled(self, x):
        return judged(self.d(self.g(x)), 1.0)

    def training_step(self, batch, batch_idx):
        self.n += 1
        self.order(self, batch[0], *self.optimizers())


def in_turn(m, x, g, d):
    d.zero_grad()
    m.manual_backward(m.real(x) + m.fake(x, apart=False))
    d.step()
    g.zero_grad()
    m.manual_backward(m.fooled(x))
    g.step()


def real_and_fake_apart(m, x, g, d):
    d.zero_grad()
    m.manual_backward(m.real(x))
    m.manual_backward(m.fake(x))
    d.step()
    g.zero_grad()
    m.manual_backward(m.fooled(x))
    g.step()


def critic_more_often(m, x, g, d):
    d.zero_grad()
    m.manual_backward(m.real(x) + m.fake(x, apart=False))
    d.step()
    if m.n % 3 == 0:
        g.zero_grad()
        m.manual_backward(m.fooled(x))
        g.step()


def by_batch(m, x, g, d):
    if m.n % 2:
        g.zero_grad()
        m.manual_backward(m.fooled(x))
        g.step()
    else:
        d.zero_grad()
        m.manual_backward(m.real(x) + m.fake(x, apart=False))
        d.step()


def updates_last(m, x, g, d):
    g.zero_grad()
    d.zero_grad()
    m.manual_backward(m.fooled(x), inputs=list(m.g.parameters()))
    m.manual_backward(m.real(x) + m.fake(x), inputs=list(m.d.parameters()))
    g.step()
    d.step()


def updates_first(m, x, g, d):
    if m.n:
        g.step()
        d.step()
    g.zero_grad()
    d.zero_grad()
    m.manual_backward(m.fooled(x), inputs=list(m.g.parameters()))
    m.manual_backward(m.real(x) + m.fake(x), inputs=list(m.d.parameters()))


def a_loss_for_nothing(m, x, g, d):
    in_turn(m, x, g, d)
    m.manual_backward(100.0 * m.fooled(x))
    g.zero_grad()
    d.zero_grad()


ORDERS = (
    in_turn,
    real_and_fake_apart,
    critic_more_often,
    by_batch,
    updates_last,
    updates_first,
    a_loss_for_nothing,
)


def largest(loss, parameters):
    """The largest eigenvalue of the dense Hessian."""
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    rows = [
        torch.cat([row.flatten() for row in torch.autograd.grad(entry, parameters, retain_graph=True)])
        for entry in torch.cat([piece.flatten() for piece in gradient])
    ]
    return float(torch.linalg.eigvalsh(torch.stack(rows).double())[-1])


class Truth(L.Callback):
    def __init__(self):
        self.seen = []

    @torch.enable_grad()
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        x = batch[0]
        pairs = {"d": pl_module.real(x) + pl_module.fake(x), "g": pl_module.fooled(x)}
        found = {name: largest(loss, list(getattr(pl_module, name).parameters())) for name, loss in pairs.items()}
        self.seen.append((max(found.values()), max(LR[name] * value for name, value in found.items())))


@pytest.mark.parametrize("order", ORDERS)
def test_it_is_that_of_each_loss_in_what_it_trains(tmp_path, order):
    x = 2.0 * torch.randn(256, 2, generator=torch.Generator().manual_seed(3))
    options = {"verbose": False, "report": False, "max_overhead": None}
    monitor, truth = TopologyMonitor([Sharpness(every_n_steps=1, tolerance=1e-4)], **options), Truth()
    data = DataLoader(TensorDataset(x), batch_size=256)
    fit(Adversaries(order), [monitor, truth], data=data, root=tmp_path, max_epochs=7)
    found = [m for m in monitor.record.measurements if m.probe == "sharpness"]
    assert len(found) >= 5
    for m in found[1:]:
        sharpness, eta_lambda = truth.seen[m.step - 1]
        assert m.values["sharpness"] == pytest.approx(sharpness, rel=1e-3)
        assert m.values["eta_lambda"] == pytest.approx(eta_lambda, rel=1e-3)
    assert [event.name for event in monitor.events if "edge" in event.name or "curvature" in event.name] == []
