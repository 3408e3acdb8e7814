"""Learning rates are multiplied whatever they are kept in, and so is what schedulers start from."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from lightning_topo.callbacks._learning_rates import scale_learning_rate


def parameters():
    return [torch.nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)])
def test_a_number_or_a_tensor_which_stays_the_same_one(lr):
    optimizer = SGD(parameters(), lr=lr)
    scale_learning_rate(optimizer, 0.5)
    [group] = optimizer.param_groups
    assert float(group["lr"]) == 0.25
    assert (group["lr"] is lr) == isinstance(lr, torch.Tensor)


def test_schedulers_go_on_from_the_new_one_and_those_of_others_as_they_were():
    optimizer, other = SGD(parameters(), lr=1.0), SGD(parameters(), lr=1.0)
    parts = [LinearLR(optimizer, 1.0, total_iters=2), CosineAnnealingLR(optimizer, 4)]
    schedule, unlike = SequentialLR(optimizer, parts, milestones=[2]), LambdaLR(other, lambda step: 1.0)
    scale_learning_rate(optimizer, 0.5, [schedule, unlike])
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] <= 0.5
    assert optimizer.param_groups[0]["initial_lr"] == 0.5
    assert unlike.base_lrs == [1.0]
