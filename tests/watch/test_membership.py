"""Which parameters are trained: what joins, leaves, or is another."""

import pytest
import torch
from torch.nn.utils import parametrize

from lightning_topo._watch.membership import READ_STEPS, Membership
from tests.watch.driving import steps_of, two_layers


@pytest.fixture
def followed():
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = steps_of(model)
    steps.keep([optimizer])
    yield model, optimizer, steps, Membership(model, steps)
    steps.release()


def test_nothing_has_changed_where_all_is_as_it_was(followed):
    _, _, steps, membership = followed
    steps.begin()
    assert membership.change(READ_STEPS) is None


def test_what_is_frozen_leaves_and_joins_again_and_is_not_new(followed):
    model, _, steps, membership = followed
    for trains in (False, True):
        model[0].weight.requires_grad_(trains)
        steps.begin()
        change = membership.change(1)
        names = frozenset({"0.weight"})
        assert (change.joined, change.left) == ((names, frozenset()) if trains else (frozenset(), names))
        assert (change.changed, change.are_new, change.names) == (frozenset(), False, names)


def test_another_name_is_seen_in_the_batch_in_which_it_comes(followed):
    model, _, steps, membership = followed
    generation = steps.generation
    parametrize.register_parametrization(model[0], "weight", torch.nn.Identity())
    steps.begin()
    change = membership.change(3)
    assert (change.joined, change.left) == ({"0.parametrizations.weight.original"}, {"0.weight"})
    assert change.are_new
    assert steps.generation > generation


def test_a_layer_of_the_same_form_in_the_place_of_another_is_a_change(followed):
    model, optimizer, steps, membership = followed
    model[4] = torch.nn.Linear(4, 2)
    optimizer.add_param_group({"params": list(model[4].parameters())})
    steps.begin()
    optimizer.step()  # it owns parameters that no name is known of
    change = membership.change(3)
    assert (change.joined, change.left, change.changed) == (set(), set(), set())
    assert change.replaced == change.names == {"4.weight", "4.bias"}
    assert change.are_new
    assert membership.change(4) is None


@pytest.mark.parametrize("what", ["shape", "dtype"])
def test_another_shape_or_dtype_is_a_change_of_that_parameter(followed, what):
    model, _, steps, membership = followed
    if what == "shape":
        model[4] = torch.nn.Linear(4, 7)
    else:
        model[4].double()
    steps.begin()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    change = membership.change(3)
    assert (change.joined, change.left, change.changed) == (set(), set(), {"4.weight", "4.bias"})
    assert change.are_new
