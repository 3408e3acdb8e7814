"""Hooks that scale gradients: the edge is where the training really diverges, and nothing is claimed of other hooks."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Sharpness, TopologyMonitor, TopologyWatch
from tests.callbacks.training import fit

SCALE = 0.25


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(32, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 1.5])
    return x, x @ torch.tensor([[1.0], [-1.0], [0.5], [2.0]])


def curvature() -> float:
    """The largest eigenvalue of the dense Hessian: H = X^T X / n, whatever the parameters."""
    x, y = data()
    hessian = torch.func.hessian(lambda w: 0.5 * (x @ w - y[:, 0]).square().mean())(torch.zeros(4))
    return float(torch.linalg.eigvalsh(hessian).max())


def scale_gradient(p):
    p.grad.mul_(SCALE)


class Quadratic(L.LightningModule):
    """Least squares on one batch, of two parameters, so that a hook may scale one of them."""

    def __init__(self, lr, hook):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        self.lr, self.hook, self.losses = lr, hook, []
        if hook == "parameters":
            for p in self.parameters():
                p.register_hook(lambda g: SCALE * g)
        if hook == "accumulated":
            for p in self.parameters():
                p.register_post_accumulate_grad_hook(scale_gradient)
        if hook == "one":
            self.first.weight.register_hook(lambda g: SCALE * g)

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self.first(x[:, :2]) + self.second(x[:, 2:])
        if self.hook == "outputs":
            out.register_hook(lambda g: SCALE * g)
        loss = 0.5 * (out - y).square().mean()
        if self.hook == "loss":
            loss.register_hook(lambda g: SCALE * g)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def watched(lr, hook, root, **options):
    module = Quadratic(lr, hook)
    monitor = TopologyMonitor([Sharpness(every_n_steps=5)], report=False, verbose=False, max_overhead=None)
    batches = DataLoader(TensorDataset(*data()), batch_size=32)
    fit(module, [monitor], root=root, data=batches, **({"max_epochs": 40} | options))
    return module, monitor


def ratios(monitor):
    return [m.values["sharpness_ratio"] for m in monitor.record.measurements if "sharpness_ratio" in m.values]


@pytest.mark.parametrize("hook", ["parameters", "accumulated", "outputs", "loss"])
@pytest.mark.parametrize("share", [0.9, 1.1])
def test_the_edge_is_where_the_training_diverges(tmp_path, hook, share):
    lr = share * 2 / (SCALE * curvature())
    module, monitor = watched(lr, hook, tmp_path)
    found = ratios(monitor)
    assert len(found) >= 7
    assert found == pytest.approx([share] * len(found), rel=0.02)
    assert (module.losses[-1] > module.losses[10]) == (share > 1)


@pytest.mark.parametrize("multiple", [1.0, 1024.0])
def test_in_a_loop_of_ones_own_what_the_loss_is_multiplied_by_is_no_hooks(tmp_path, multiple):
    """As a gradient scaler does, which divides the gradients again."""
    module = Quadratic(0.9 * 2 / (SCALE * curvature()), "parameters")
    optimizer = module.configure_optimizers()
    options = {"report": False, "verbose": False, "max_overhead": None, "dirpath": tmp_path}
    with TopologyWatch(module, optimizer, probes=[Sharpness(every_n_steps=5)], **options) as watch:
        for _ in range(20):
            with watch.step():
                optimizer.zero_grad()
                loss = watch.loss(module.training_step(data(), 0))
                (multiple * loss).backward()
                for p in module.parameters():
                    p.grad.div_(multiple)
                optimizer.step()
        found = ratios(watch)
    assert len(found) >= 4
    assert found == pytest.approx([0.9] * len(found), rel=0.02)


def test_clipping_comes_on_top(tmp_path):
    lr = 0.5 * 2 / (SCALE * curvature())
    module, monitor = watched(lr, "parameters", tmp_path, gradient_clip_val=1e-3, max_epochs=12)
    for p in module.parameters():
        assert p.grad is not None
    clipped = torch.cat([p.grad.flatten() for p in module.parameters()]).norm()
    assert clipped == pytest.approx(1e-3, rel=1e-3)
    x, y = data()
    with torch.no_grad():
        out = module.first(x[:, :2]) + module.second(x[:, 2:])
        whole = (x.T @ (out - y) / len(x)).norm()
    # The gradient that was clipped last is that of the step before: it moves by less than 0.1 % in between.
    assert ratios(monitor)[-1] == pytest.approx(float(lr * 1e-3 / whole) * curvature() / 2, rel=0.02)


def test_of_a_hook_on_one_of_two_parameters_nothing_is_claimed(tmp_path):
    _, monitor = watched(0.1, "one", tmp_path, max_epochs=12)
    assert ratios(monitor) == []
    [failed] = [e.message for e in monitor.events if e.name == "probe_failed" and e.message.startswith("sharpness")]
    assert "the replay's gradient differs from the step's in 1 parameters" in failed


def test_bits_are_those_of_the_training_alone(tmp_path):
    module, _ = watched(0.1, "loss", tmp_path)
    alone = Quadratic(0.1, "loss")
    fit(alone, [], root=tmp_path, data=DataLoader(TensorDataset(*data()), batch_size=32), max_epochs=40)
    assert alone.losses == module.losses
    assert all(map(torch.equal, alone.parameters(), module.parameters()))
