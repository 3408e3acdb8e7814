"""An optimizer whose updates are measured and taken back: the ratios of every pair, and fractions of an update."""

import math

import lightning as L
import pytest
import torch

from lightning_topo.callbacks._watched_optimizer import WatchedOptimizer
from tests.callbacks.test_step_guard import GROUPS, ratio
from tests.callbacks.training import Classifier, hooks_of_all_optimizers


@pytest.fixture
def setting():
    torch.manual_seed(0)
    module = Classifier()
    for p in module.parameters():
        p.grad = torch.randn(p.shape)
    return module, torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


def watch(setting, on_update=lambda watched: None, groups=GROUPS):
    module, optimizer = setting
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=False)
    return WatchedOptimizer(trainer, module, optimizer, groups, 1.0, on_update)


def copies(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_the_ratios_are_those_of_every_pair_of_each_group(setting):
    module, optimizer = setting
    found = []
    watched = watch(setting, lambda w: found.append(w.ratios()))
    for _ in range(3):
        before = copies(module)
        optimizer.step()
        truth = {group.name: ratio(before, copies(module), group) for group in GROUPS}
        assert found[-1] == pytest.approx(truth, rel=1e-4)
    watched.release()
    optimizer.step()
    assert len(found) == 3
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_a_fraction_of_an_update_is_on_the_way_from_before_to_after(setting, factor):
    module, optimizer = setting
    before, after = copies(module), {}

    def take(watched):
        after.update(copies(module))
        watched.take(watched.update(), factor)

    watch(setting, take)
    optimizer.step()
    for name, p in module.named_parameters():
        wanted = before[name].double() + factor * (after[name].double() - before[name].double())
        torch.testing.assert_close(p.detach(), wanted.float(), rtol=0.0, atol=1e-7)


def test_an_update_that_is_dropped_leaves_every_parameter_bitwise(setting):
    module, optimizer = setting
    before = copies(module)
    watch(setting, WatchedOptimizer.drop)
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_an_update_to_infinity_is_infinite_and_from_infinity_there_is_nothing_to_protect(setting):
    module, optimizer = setting
    found = []
    watch(setting, lambda w: found.append(w.ratios()))
    module.net[0].weight.grad[2, 1] = math.inf
    optimizer.step()
    optimizer.step()
    name, other = GROUPS[0].name, GROUPS[1].name
    assert [ratios[name] for ratios in found] == [math.inf, 0.0]
    assert all(math.isfinite(ratios[other]) for ratios in found)


def test_only_groups_that_the_optimizer_has_a_part_of_count():
    torch.manual_seed(0)
    module = Classifier()
    for p in module.parameters():
        p.grad = torch.randn(p.shape)
    found = []
    optimizer = torch.optim.SGD(module.net[0].parameters(), lr=0.05)
    watched = watch((module, optimizer), lambda w: found.append(w.ratios()))
    optimizer.step()
    assert set(found[0]) == {GROUPS[0].name}
    assert watched.update() == []  # nothing is kept between updates


def test_an_error_behind_an_update_is_not_swallowed_and_nothing_is_kept(setting):
    _, optimizer = setting
    n_hooks = hooks_of_all_optimizers()

    def fails(watched):
        raise KeyError("mine")

    watched = watch(setting, fails)
    with pytest.raises(KeyError, match="mine"):
        optimizer.step()
    assert watched.update() == []
    watched.release()
    assert hooks_of_all_optimizers() == n_hooks
