"""What is held of an update: the largest part at most at the limit, and all of it where it is just there."""

import math

import pytest
import torch

from lightning_topo._watch.holding import hold
from lightning_topo._watch.updates import Update


def update(change):
    before, after = torch.zeros(2), torch.nn.Parameter(torch.tensor([change, 0.0]))
    return Update(torch.optim.SGD([after], lr=1.0), {"w": before}, {"w": after}), after


def test_an_update_at_the_limit_is_taken_as_it_is():
    step, after = update(0.5)
    held = hold(step, lambda: {"g": float(after[0].detach())}, 0.5)
    assert (held.factor, held.critical_ratio) == (1.0, 0.5)
    assert after.tolist() == [0.5, 0.0]


def test_of_one_above_it_the_part_up_to_the_limit_is_taken():
    step, after = update(4.0)
    held = hold(step, lambda: {"g": float(after[0].detach())}, 0.5)
    assert held.factor == pytest.approx(0.125, rel=1e-4)
    assert 0.4999 < held.critical_ratio <= 0.5
    assert held.critical_ratio == float(after[0].detach())


@pytest.mark.parametrize("ratio", [math.inf, math.nan])
def test_of_one_that_is_not_finite_nothing_is_taken(ratio):
    step, after = update(4.0)
    held = hold(step, lambda: {"g": ratio}, 0.5)
    assert held.factor == 0.0
    assert after.tolist() == [0.0, 0.0]


def test_a_part_that_comes_out_at_the_limit_is_taken_at_once():
    step, _ = update(4.0)
    found = iter([4.0, 0.5])
    held = hold(step, lambda: {"g": next(found)}, 0.5)
    assert held.critical_ratio == 0.5
    assert 0.12 < held.factor < 0.126
