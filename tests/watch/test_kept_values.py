"""Copies of parameters: what has moved since is seen, and lent copies stay as they are."""

import pytest
import torch
from torch import nn

from lightning_topo._watch.kept_values import KeptValues


@pytest.fixture
def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3)) for _ in range(3)]


@pytest.fixture
def values(parameters):
    values = KeptValues()
    for parameter in parameters[:2]:
        values.meet(parameter)
    return values


def copies(values):
    return [kept.copy.tolist() for kept in values]


def test_a_parameter_is_copied_when_it_is_met_and_not_again(parameters, values):
    first = parameters[0].tolist()
    parameters[0].data += 1.0
    values.meet(parameters[0])
    assert copies(values) == [first, parameters[1].tolist()]
    assert values.n_met == 2
    assert [kept.parameter is p for kept, p in zip(values.of(parameters), parameters, strict=False)] == [True, True]


def test_a_lazy_parameter_is_met_once_it_has_values():
    layer, values = nn.LazyLinear(2), KeptValues()
    values.meet(layer.weight)
    assert values.n_met == 0
    layer(torch.zeros(1, 3))
    values.meet(layer.weight)
    assert [kept.copy.shape for kept in values] == [(2, 3)]


def test_what_has_moved_is_found_whether_or_not_the_write_counts(parameters, values):
    assert values.moved(parameters[:2]) == []
    parameters[0].data += 1.0
    with torch.no_grad():
        parameters[1].mul_(2.0)
    found = values.moved(parameters[:2])
    assert [kept.parameter is p for kept, p in zip(found, parameters, strict=False)] == [True, True]
    assert [kept.is_written for kept in found] == [False, True]
    assert values.is_any_written()
    values.renew(found)
    assert values.moved(parameters[:2]) == []
    assert copies(values) == [p.tolist() for p in parameters[:2]]
    assert not values.is_any_written()


def test_what_is_written_as_it_was_has_not_moved(parameters, values):
    with torch.no_grad():
        parameters[0].add_(0.0)
    [kept] = values.of(parameters[:1])
    assert (kept.is_written, kept.has_moved()) == (True, False)


def test_one_that_joins_or_has_another_form_now_has_not_moved_and_is_met(parameters, values):
    parameters[0].data = 2.0 * parameters[0].data.double()
    assert values.moved(parameters) == []
    assert values.n_met == 4
    assert sorted(copies(values)) == sorted(p.tolist() for p in parameters)
    assert {kept.copy.dtype for kept in values.of(parameters[:1])} == {torch.float64}


@pytest.mark.parametrize("is_lent", [False, True])
def test_copies_are_overwritten_unless_they_are_lent(parameters, values, is_lent):
    before, addresses = copies(values), [kept.copy.data_ptr() for kept in values]
    lent = values.lend()
    if not is_lent:
        values.take_back()
    for parameter in parameters[:2]:
        parameter.data += 1.0
    values.renew(values.of(parameters))
    now = [p.tolist() for p in parameters[:2]]
    assert copies(values) == now
    assert [lent[id(p)].tolist() for p in parameters[:2]] == (before if is_lent else now)
    assert ([kept.copy.data_ptr() for kept in values] == addresses) is not is_lent


def test_of_frozen_parameters_no_copy_is_lent(parameters, values):
    parameters[0].requires_grad_(False)
    assert values.lend().keys() == {id(parameters[1])}


def test_nothing_is_held_once_all_are_let_go(parameters, values):
    values.clear()
    assert list(values) == values.of(parameters) == []
