"""A module's parameters and their names, as modules change while they train."""

import pytest
import torch
from torch import nn

from lightning_topo._watch.parameter_names import ParameterNames, form


@pytest.fixture
def module():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


@pytest.fixture
def names(module):
    return ParameterNames(module)


def test_a_shared_parameter_has_each_of_its_names(module):
    module[1] = module[0]
    names = ParameterNames(module)
    assert names.of(module[0].weight) == ("0.weight", "1.weight")
    assert names.forms().keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_of_other_parameters_none_is_the_modules(module, names):
    other = nn.Parameter(module[0].weight.detach().clone())
    assert names.known([other, module[0].bias]) == [module[0].bias]
    assert names.of(other) == ()


def replaced(module):
    module[0].weight = nn.Parameter(torch.zeros(3, 2))


def renamed(module):
    module[0].kernel = module[0].weight
    del module[0].weight


def added_where_some_are(module):
    module[1].gain = nn.Parameter(torch.ones(1))


def left(module):
    module[1].bias = None


def another_module(module):
    module[1] = nn.Linear(3, 2)


def one_module_more(module):
    module.append(nn.Linear(2, 2))


@pytest.mark.parametrize("change", [replaced, renamed, added_where_some_are, left, another_module, one_module_more])
def test_a_change_is_seen_and_read_once(module, names, change):
    before = names.generation
    assert names.are_current
    change(module)
    assert not names.are_current
    names.read()
    assert (names.are_current, names.generation) == (True, before + 1)
    names.read()
    assert names.generation == before + 1
    found = {name for own in names.by_id.values() for name in own}
    assert found == dict(module.named_parameters()).keys()


def test_values_and_types_are_no_names(module, names):
    before = names.generation
    module.double()
    with torch.no_grad():
        module[0].weight.zero_()
    names.read()
    assert names.generation == before
    assert names.forms()["0.weight"] == (torch.Size([3, 2]), torch.float64) == form(module[0].weight)


def test_a_lazy_parameter_has_a_name_and_no_form_yet():
    module = nn.Sequential(nn.LazyLinear(3))
    names = ParameterNames(module)
    assert names.of(module[0].weight) == ("0.weight",)
    assert names.forms() == {}
    module(torch.zeros(1, 2))
    assert names.forms()["0.weight"] == (torch.Size([3, 2]), torch.float32)
