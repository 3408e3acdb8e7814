"""Parameters that enter a replay: what autograd keeps of them, and where their gradients go."""

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lightning_topo._watch.gathering import plan
from lightning_topo._watch.sharded_reading import Reading
from lightning_topo.neurons._units import units
from tests.watch.shards import Attends, in_shards, recorded, tokens

pytestmark = pytest.mark.usefixtures("one_process")
WEIGHT = "block.0.weight"


@pytest.fixture
def net():
    return in_shards(Attends())


def reading(net, trained=(WEIGHT,)):
    """The parameters of a recorded step, what was gathered, and the gradients that came."""
    [tape] = recorded(net, tokens())[0]._tapes
    gathered, gradients = [], []
    made = Reading(
        {},
        plan(tape, units(net)),
        frozenset(trained),
        lambda unit: gathered.append(unit.path),
        lambda name, gradient: gradients.append((name, gradient)),
    )
    return made, gathered, gradients


def test_a_parameter_is_freed_after_its_reader_and_gathered_again_for_the_gradient(net):
    made, gathered, gradients = reading(net)
    with made.saving():
        weight = made[WEIGHT]
        whole, memory = weight.detach().clone(), StorageWeakRef(weight.untyped_storage())
        x = torch.ones(2, 8, requires_grad=True)
        out = (x @ weight.T).sum()
        del weight
        made.copies.clear()
    gc.collect()
    assert memory.expired()
    assert gathered == ["", "attention", "block"]
    (found,) = torch.autograd.grad(out, [x])
    torch.testing.assert_close(found, whole.sum(0).expand(2, 8))
    assert gathered == ["", "attention", "block", "block"]
    assert gradients == []  # nobody asked


def test_one_gathering_serves_what_is_saved_of_a_unit(net):
    made, gathered, gradients = reading(net, (WEIGHT, "block.2.weight"))
    with made.saving():
        first, second = made[WEIGHT], made["block.2.weight"]
        out = (torch.ones(2, 8) @ first.T @ second.T).square().sum()
    gathered.clear()
    torch.autograd.grad(out, [made.anchor], allow_unused=True)
    assert gathered == ["block"]
    assert [name for name, _ in gradients] == ["block.2.weight", WEIGHT]


def test_a_gradient_comes_whole_and_once_where_a_parameter_is_used_twice(net):
    made, _, gradients = reading(net)
    with made.saving():
        weight = made[WEIGHT]
        out = weight.sum() + 2 * weight.sum()
    torch.autograd.grad(out, [made.anchor], allow_unused=True)
    [(name, gradient)] = gradients
    assert (name, gradient.unique().tolist()) == (WEIGHT, [3.0])


def test_a_cast_is_no_new_tensor_and_what_is_computed_is(net):
    made, _, _ = reading(net)
    with made.saving():
        weight = made[WEIGHT]
        half = weight.to(torch.bfloat16)
        packed = [made._packed(tensor.detach()) for tensor in (weight, weight.T, half, half[1:], weight + 1.0)]
    assert [isinstance(one, torch.Tensor) for one in packed] == [False, False, False, False, True]
    for one, tensor in zip(packed, (weight, weight.T, half, half[1:]), strict=False):
        assert torch.equal(made._unpacked(one), tensor.detach())


def test_frozen_parameters_enter_without_a_gradient(net):
    made, _, _ = reading(net, ())
    assert not made[WEIGHT].requires_grad


def test_under_no_grad_a_trained_one_still_has_its_gradient_for_later(net):
    """A call without a gradient may be the first that reads it."""
    made, _, _ = reading(net)
    with torch.no_grad():
        assert made[WEIGHT].requires_grad
