"""Modules that are not like others: an own `named_parameters`, no neurons at all."""

import pytest
import torch
from torch import nn

from lightning_topo import Distortion, Sharpness, TopologyWatch


class Loss(nn.Module):
    """A loss with its network, whose list of parameters leaves some out (as torchrl's leave out targets)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        self._target = nn.Linear(6, 2)

    def named_parameters(self, prefix: str = "", recurse: bool = True):
        for name, parameter in super().named_parameters(prefix=prefix, recurse=recurse):
            if not name.startswith("_target"):
                yield name, parameter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self._target(x)
        return (self.net(x) - wanted).square().mean()


def watched(module, tmp_path, probes):
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.01)
    with TopologyWatch(module, optimizer, probes, dirpath=tmp_path, verbose=False) as watch:
        for _ in range(6):
            with watch.step():
                watch.loss(module(torch.randn(8, 6))).backward()
                optimizer.step()
                optimizer.zero_grad()
    return watch


def test_an_own_list_of_parameters_is_taken_as_it_is(tmp_path):
    watch = watched(Loss(), tmp_path, [Distortion()])
    assert [(group.name, group.n, group.status) for group in watch.groups] == [("net.0", 16, "verified")]
    assert watch.metrics["topology/coverage"] == 1.0


@pytest.mark.parametrize(
    ("module", "probes"),
    [(nn.Sequential(nn.Linear(6, 1)), [Distortion()]), (Loss(), [Sharpness(every_n_steps=2)])],
    ids=["no neurons", "no probe of steps"],
)
def test_without_neurons_or_a_probe_of_their_steps_nothing_is_claimed(module, probes, tmp_path):
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).mean()

    watch = watched(Mean(), tmp_path, probes)
    assert watch.metrics["topology/coverage"] == 0.0
    assert watch.metrics["topology/phase"] == -1.0 or probes[0].name == "sharpness"
