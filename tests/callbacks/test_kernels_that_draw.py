"""Kernels that draw random numbers by themselves draw them for the training alone, however often we run them again."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Distortion, Sharpness, TopologyMonitor, TopologyStepGuard
from tests.callbacks.untouched import Noted, differences, left_behind
from tests.tape.fused_attention import TELLING, UNTOLD, Block, kernels
from tests.tape.steps import batch, labels, mlp


class FusedAttention(Noted):
    """Attention by a kernel with dropout inside, which tells the numbers that it drew from, or does not."""

    def __init__(self, kernel):
        super().__init__()
        self.net, self.kernel = Block(kernel), kernel

    def step(self, batch):
        return F.cross_entropy(self.net(batch[0]).flatten(0, 1), batch[0].flatten())


@pytest.mark.parametrize("kernel", [TELLING[0], UNTOLD[0]])
def test_dropout_inside_of_attention_falls_as_it_would_have(tmp_path, kernel):
    def data():
        return DataLoader(TensorDataset(torch.randint(7, (32, 5), generator=torch.Generator().manual_seed(3))), 8)

    probes = [Distortion(every_n_steps=1), Sharpness(every_n_steps=2)]
    monitor = TopologyMonitor(probes, report=False, verbose=False, max_overhead=None)
    with kernels():
        _, plain = left_behind(lambda: FusedAttention(kernel), [], data, tmp_path)
        trainer, watched = left_behind(lambda: FusedAttention(kernel), [monitor], data, tmp_path)
    assert differences(plain, watched) == []
    assert {group.status for group in monitor.groups} == {"verified"}
    assert ("topology/sharpness" in trainer.callback_metrics) == (kernel == TELLING[0])


@torch.library.custom_op("lightning_topo_tests::stochastic", mutates_args=())
def stochastic(x: torch.Tensor) -> torch.Tensor:
    """Draws from what is global, and lets none of it count."""
    return x + 0 * (torch.rand(()) + float(np.random.rand()))  # noqa: NPY002


def rounded_at_random(context, gradient):
    return gradient * (1 + 1e-6 * torch.randn(gradient.shape))


stochastic.register_autograd(rounded_at_random)


class Stochastic(Noted):
    """A kernel of somebody else's with stochastic rounding; the data is noisy, too."""

    def __init__(self):
        super().__init__()
        self.net = mlp(5, 8, 6, 3)

    def step(self, batch):
        x = batch[0] + 0.01 * float(np.random.rand())  # noqa: NPY002
        return F.cross_entropy(self.net[2:](stochastic(self.net[:2](x))), batch[1])


WATCHES = {
    "monitor": lambda: TopologyMonitor([Distortion(1), Sharpness(1)], report=False, verbose=False, max_overhead=None),
    "by default": lambda: TopologyMonitor(report=False, verbose=False),
    "guard": lambda: TopologyStepGuard(0.9),
}


@pytest.mark.parametrize("kind", WATCHES)
def test_an_operator_of_somebody_else_s_draws_for_the_training_alone(tmp_path, kind):
    def data():
        return DataLoader(TensorDataset(batch(0, 24, 5), labels(1, 24, 3)), 8)

    watch = WATCHES[kind]()
    _, plain = left_behind(Stochastic, [], data, tmp_path)
    _, watched = left_behind(Stochastic, [watch], data, tmp_path)
    assert differences(plain, watched) == []
    assert watch.groups
