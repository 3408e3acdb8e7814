"""A tensor is known again by its object or its memory, whoever holds it."""

import pytest
import torch
from torch import Tensor, nn

from lightning_topo._tape.memory_map import MemoryMap
from lightning_topo._tape.program import Slot, alias, bits, region, set_data


@pytest.fixture
def parameter() -> nn.Parameter:
    return nn.Parameter(torch.arange(6.0).reshape(2, 3))


def test_other_objects_on_the_same_memory_are_the_same_slot_unless_a_gradient_tells_them_apart(parameter) -> None:
    memory = MemoryMap()
    memory.name("weight", parameter)
    slot, calls = memory.find(parameter)
    assert calls == []
    bare, calls = memory.find(parameter.data)
    assert bare != slot
    assert [(c.operator, c.args[0], c.grad) for c in calls] == [(alias, Slot(slot), False)]
    again, calls = memory.find(parameter.detach())
    assert (again, calls) == (bare, [])


def test_a_view_that_no_call_has_made_is_a_region_of_known_memory(parameter) -> None:
    memory = MemoryMap()
    made = (parameter * 2).detach()
    slot = memory.new(made, connected=False)
    part, [call] = memory.find(made[1:, 1:])
    assert (call.operator, call.inputs, call.outputs) == (alias, (slot,), (part,))
    assert torch.equal(call.operator(made, *call.args[1:]), made[1:, 1:])
    connected = parameter * 3
    slot = memory.new(connected, connected=True)
    part, [call] = memory.find(connected[:, :2])
    assert (call.operator, call.inputs, call.grad) == (region, (slot,), True)
    assert torch.equal(call.operator(connected, *call.args[1:]), connected[:, :2])


def test_memory_seen_as_another_type_or_from_before_is_followed_where_no_gradient_flows() -> None:
    memory, made = MemoryMap(), torch.arange(4.0)
    memory.new(made[1:], connected=False)
    for other in (made.view(torch.int32)[2:], made[:2], made.view(torch.uint8)[5:7]):
        slot, [call] = memory.find(other)
        assert (call.operator, call.outputs, call.grad) == (bits, (slot,), False)
        assert torch.equal(call.operator(made[1:], *call.args[1:]), other)
        assert memory.find(other) == (slot, [])
    leaf = nn.Parameter(torch.arange(4.0))
    memory.new(leaf[1:] * 2, connected=True)
    kept = (leaf * 2)[:]
    memory.new(kept[1:], connected=True)
    with pytest.raises(RuntimeError, match="shared in a way that cannot be followed"):
        memory.find(kept[:2])


def test_a_copy_of_all_bytes_is_one_of_the_numbers_there() -> None:
    memory, made, copy = MemoryMap(), torch.arange(6.0).view(2, 3).T, torch.empty(6)
    slot = memory.new(made, connected=False)
    source, to = (torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()) for x in (made, copy))
    for part in (source[4:], source[:-1]):
        memory.find(part)
        assert memory.copied_storage(to, part) is None
    memory.find(to)
    call = memory.copied_storage(to, source)
    assert call is not None
    assert (call.operator, call.args) == (torch.ops.aten.clone.default, (Slot(slot),))
    assert memory.find(copy.view(2, 3).T) == (call.outputs[0], [])
    assert memory.copied_storage(to, source) is None  # somebody knows this memory now


def test_what_nobody_made_is_a_constant_and_is_copied_when_it_is_about_to_be_written() -> None:
    memory, data = MemoryMap(), torch.ones(4)
    slot, calls = memory.find(data)
    assert (calls, memory.known_slot(data)) == ([], slot)
    assert memory.constants()[slot].data_ptr() == data.data_ptr()
    memory.about_to_write(data[2:])
    data.zero_()
    assert memory.constants()[slot].tolist() == [1.0] * 4


def test_memory_that_was_freed_and_taken_again_is_not_mistaken_for_the_old(parameter) -> None:
    memory = MemoryMap()
    seen = set()
    for _ in range(20):
        made = torch.ones(1000)
        slot = memory.new(made, connected=False)
        assert memory.find(made) == (slot, [])
        seen.add(slot)
        del made
    assert len(seen) == 20


def test_a_parameter_whose_data_was_replaced_is_the_same_slot_after_a_call_that_says_so(parameter) -> None:
    memory = MemoryMap()
    memory.name("weight", parameter)
    slot, _ = memory.find(parameter)
    parameter.data = torch.full((2, 3), 7.0)
    found, calls = memory.find(parameter)
    assert found == slot
    assert calls[-1].operator is set_data
    assert calls[-1].writes == (slot,)
    assert memory.constants()[calls[-1].args[1].index].tolist() == [[7.0] * 3] * 2
    assert memory.find(parameter) == (slot, [])


def test_a_parameter_that_moved_unseen_gets_a_new_slot_of_its_new_value(parameter) -> None:
    memory = MemoryMap()
    memory.name("weight", parameter)
    memory.name("tied", parameter)
    memory.refresh("weight", parameter)
    assert list(memory.names().values()) == [("weight", "tied")]
    with torch.no_grad():
        parameter.add_(1.0)
    memory.refresh("weight", parameter)
    assert list(memory.names().values()) == [("weight", "tied")] * 2
    before, after = memory.values().values()
    assert torch.equal(after, before + 1)
    assert torch.equal(after, parameter)


def test_a_copy_of_the_same_values_is_taken_and_one_of_others_is_not(parameter) -> None:
    right, wrong = parameter.detach().clone(), parameter.detach() + 1

    def kept(copy: Tensor) -> Tensor:
        memory = MemoryMap({id(parameter): copy})
        memory.name("weight", parameter)
        [value] = memory.values().values()
        return value

    assert kept(right) is right
    assert torch.equal(kept(wrong), parameter)
    assert kept(wrong).data_ptr() != parameter.data_ptr()


def test_buffers_are_not_among_what_is_trained(parameter) -> None:
    memory = MemoryMap()
    memory.name("weight", parameter)
    memory.name("frozen", nn.Parameter(torch.ones(1), requires_grad=False))
    memory.name("mean", torch.zeros(3), is_buffer=True)
    assert memory.trainable() == {"weight": True, "frozen": False}


def test_what_was_gathered_into_memory_is_another_slot_than_what_lay_there_before(parameter) -> None:
    """Without the calls that filled it, and again when it was filled with other values."""
    memory = MemoryMap()
    filled, _ = memory.find(parameter.detach())
    memory.about_to_write(parameter)
    memory.name_gathered("weight", parameter, keep_value=True)
    first, calls = memory.find(parameter)
    assert first != filled
    assert memory.storages[first] != memory.storages[filled]
    assert (calls, memory.names()) == ([], {first: ("weight",)})
    memory.name_gathered("tied", parameter, keep_value=True)
    assert memory.names() == {first: ("weight", "tied")}
    parameter.data.add_(1.0)
    memory.name_gathered("weight", parameter, keep_value=True)
    second, _ = memory.find(parameter)
    assert memory.names()[second] == ("weight",)
    assert memory.storages[second] != memory.storages[first]
    assert torch.equal(memory.values()[second], parameter)


def test_of_a_parameter_that_is_gathered_no_value_need_be_kept(parameter) -> None:
    memory = MemoryMap()
    memory.name_gathered("weight", parameter, keep_value=False)
    memory.name_gathered("tied", parameter, keep_value=False)
    assert list(memory.names().values()) == [("weight", "tied")]
    memory.name_gathered("weight", parameter, keep_value=False, anew=True)
    memory.name_gathered("tied", parameter, keep_value=False, anew=True)
    assert list(memory.names().values()) == [("weight", "tied")] * 2
    assert (memory.values(), memory.copied_bytes) == ({}, 0)


def test_what_one_gathering_has_filled_is_one_memory() -> None:
    """As views of a flat parameter, and what ZeRO-3 gathers together: the second takes nothing from the first."""
    memory, flat = MemoryMap(), torch.arange(6.0)
    one, other = flat[:4].view(2, 2), flat[4:]
    for gathering in (1, 2):
        memory.name_gathered("one", one, keep_value=False, gathering=gathering, anew=True)
        memory.name_gathered("other", other, keep_value=False, gathering=gathering, anew=True)
        slots = [memory.find(one), memory.find(other)]
        assert [calls for _, calls in slots] == [[], []]
        one, other = flat[:4].view(2, 2), flat[4:]


def test_a_parameter_that_is_gathered_elsewhere_is_no_other_one(parameter) -> None:
    memory = MemoryMap()
    memory.name_gathered("weight", parameter, keep_value=True, gathering=1)
    parameter.data = parameter.data.clone()
    memory.name_gathered("weight", parameter, keep_value=True, gathering=2)
    slot, calls = memory.find(parameter)
    assert calls == []
    assert memory.names()[slot] == ("weight",)
