"""What is written down of each call, apart from the mode that sees it."""

import pytest
import torch
from torch import nn

from lightning_topo._tape.call_log import CallLog, tensors_and_none
from lightning_topo._tape.memory_map import MemoryMap
from lightning_topo._tape.program import Slot

aten = torch.ops.aten


def run(log, operator, *args):
    prepared = log.prepare(operator, args, {})
    result = operator(*args)
    log.note(prepared, result)
    return result


def named(**tensors):
    log = CallLog(MemoryMap())
    for name, tensor in tensors.items():
        log.memory.name(name, tensor)
    return log


def test_a_call_has_slots_for_tensors_and_its_other_arguments_as_they_are():
    weight = nn.Parameter(torch.ones(2, 3))
    log = named(weight=weight)
    result = run(log, aten.sum.dim_IntList, weight, [1])
    [call] = log.calls
    assert call.operator is aten.sum.dim_IntList
    assert call.args == (Slot(log.slot(weight)), (1,))
    assert call.outputs == (log.slot(result),)
    assert call.grad
    assert not call.writes


def test_a_tensor_that_is_written_keeps_its_slot_and_a_view_gets_its_own():
    x = torch.zeros(4)
    log = named(x=x)
    assert run(log, aten.add_.Tensor, x, 1.0) is x
    assert log.calls[-1].outputs == (log.slot(x),)
    assert log.calls[-1].writes == (log.slot(x),)
    view = run(log, aten.view.default, x, [2, 2])
    assert log.slot(view) != log.slot(x)


def test_a_read_of_the_host_is_kept_with_its_value():
    x = torch.tensor(3.0)
    log = named(x=x)
    assert run(log, aten._local_scalar_dense.default, x) == 3.0
    [read] = log.host_reads
    assert (read.slot, read.value) == (log.slot(x), 3.0)


def test_what_cannot_be_noted_is_refused_with_its_kind():
    log = named()
    with pytest.raises(TypeError, match="higher-order"):
        log.prepare(print, (), {})
    with pytest.raises(TypeError, match="type FakeTensor"), torch._subclasses.FakeTensorMode():
        log.slot(torch.empty(2))
    assert log.prepare(aten.detach.default, (nn.UninitializedParameter(),), {}) is None


@pytest.mark.parametrize("is_the_module_s", [True, False])
def test_a_parameter_without_a_name_is_asked_for_once(is_the_module_s):
    weight = nn.Parameter(torch.ones(2))
    asked = []

    def name_gathered():
        asked.append(1)
        if is_the_module_s:
            log.memory.name("weight", weight)

    log = CallLog(MemoryMap(), name_gathered=name_gathered)
    if is_the_module_s:
        assert log.slot(weight) == log.slot(weight)
    else:
        with pytest.raises(TypeError, match="none of the module's"):
            log.slot(weight)
    assert asked == [1]


def test_random_numbers_are_kept_as_they_fell():
    log = named()
    torch.manual_seed(0)
    drawn = run(log, aten.rand.default, [3])
    [value] = log.draws.values.values()
    assert torch.equal(value, drawn)
    assert log.calls[-1].draw is not None


def test_results_are_flattened_with_their_gaps():
    x = torch.zeros(1)
    assert [out is x for out in tensors_and_none((x, [None, x], 3))] == [True, False, True, False]
