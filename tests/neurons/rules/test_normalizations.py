"""Normalisations, softmax and reparametrised weights: their rules against the operators, and models around them."""

import pytest
import torch
import torch.nn.functional as F

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, X, check_exchangeable, free_axes

FREE = {
    "softmax": (lambda x: x.softmax(1), [(2, 3)], [2, 3]),
    "log-softmax": (lambda x: x.log_softmax(0), [(2, 3)], [2, 3]),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (3,), w, b), [(2, 3), (3,), (3,)], [2, 3]),
    "layer norm over two axes": (lambda x, w: F.layer_norm(x, (3, 4), w), [(2, 3, 4), (3, 4)], [2, 3, 4]),
    "root mean square": (lambda x, w: F.rms_norm(x, (3,), w), [(2, 3), (3,)], [2, 3]),
    "batch norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [(5, 3), (3,), (3,)], [3, 5]),
    "batch norm by what is known": (
        lambda x, mean, var, w: F.batch_norm(x, mean, var.square() + 1, w),
        [(5, 3), (3,), (3,), (3,)],
        [3, 5],
    ),
    "group norm": (lambda x, w, b: F.group_norm(x, 3, w, b), [(5, 6, 4), (6,), (6,)], [2, 3, 4, 5]),
    "magnitude and direction": (lambda v, g: torch._weight_norm(v, g, 0), [(3, 4), (3, 1)], [3, 4]),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_a_rule_leaves_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


EXCHANGEABLE = {
    "softmax over neurons": lambda h: h.softmax(-1),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


APART = {
    "groups of softmax": (lambda h: h.unflatten(-1, (3, 4)).softmax(-1).flatten(-2), 12, {(3, ()), (4, (3,))}),
}


@pytest.mark.parametrize(("between", "width", "expected"), APART.values(), ids=APART)
def test_axes_that_are_taken_apart(between, width: int, expected: set) -> None:
    groups = find_neuron_groups(Between(between, width), X)
    assert {(g.n, g.block_shape) for g in groups} == expected
    assert {g.status for g in groups} == {"verified"}
