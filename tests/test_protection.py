"""Running a module's own code leaves no trace in the module."""

from collections import deque

import torch
import torchmetrics
from torch import nn

from lightning_topo.protection import unchanged


class Busy(nn.Module):
    """Has everything that a training step may touch."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.accuracy = torchmetrics.MeanMetric()
        self.curve = torchmetrics.CatMetric()
        self.count = 0
        self.queue = deque([1.0], maxlen=4)
        self.seen = {"a": 1}
        self.names = {"x"}
        self.history = [torch.zeros(1)]
        self.total = torch.zeros(2)

    def forward(self, x):
        self.count += 1
        self.queue.append(2.0)
        self.seen["b"] = 2
        self.names.clear()
        self.history.append(x)
        self.total += 1.0
        self.latest = x
        self.accuracy.update(x.mean())
        self.curve.update(x.mean())
        self.norm.register_buffer("extra", torch.ones(1))
        self.register_forward_hook(lambda *_: None)
        self.log = lambda *_: None
        return self.norm(x)


def snapshot(module):
    return {
        "state": {name: t.clone() for name, t in module.state_dict().items()},
        "plain": (module.count, list(module.queue), dict(module.seen), set(module.names), len(module.history)),
        "total": module.total.clone(),
        "metrics": (module.accuracy.compute().item(), len(module.curve.value), module.accuracy._update_count),
        "hooks": len(module._forward_hooks),
        "attributes": set(module.__dict__),
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_everything_is_put_back():
    module = Busy()
    module.accuracy.update(1.0)
    before = snapshot(module)
    queue, total = module.queue, module.total
    with unchanged(module):
        module(torch.randn(8, 3))
        assert not same(before, snapshot(module))
    assert same(before, snapshot(module))
    assert module.queue is queue
    assert module.queue.maxlen == 4
    assert module.total is total


def test_also_after_an_error():
    module = Busy()
    module.accuracy.update(1.0)
    before = snapshot(module)
    try:
        with unchanged(module):
            module(torch.randn(8, 3))
            raise KeyError
    except KeyError:
        pass
    assert same(before, snapshot(module))


def test_the_module_still_trains():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with unchanged(module):
        module(torch.randn(8, 3)).sum().backward()
    module.zero_grad()
    before = module[0].weight.clone()
    module(torch.randn(8, 3)).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert not torch.equal(before, module[0].weight)
