"""What a tensor's values give away of an axis: kept while they are only moved, frozen once they are read."""

import pytest
import torch

from lightning_topo.neurons._coupling import flat, new_axis
from lightning_topo.neurons._marks import Marks
from lightning_topo.neurons._operator_call import operator_call

WHY = "the position of an extreme"


@pytest.fixture
def settled():
    return []


@pytest.fixture
def marks(settled):
    return Marks(settled.append)


def called(operator, *args):
    return operator_call(operator, args, {}, operator(*args))


def is_frozen(axis):
    return any(atom.frozen for atom in flat(axis))


def test_positions_along_an_axis_freeze_it_with_the_first_reason_once_they_are_read(marks, settled):
    index, axis, other = torch.tensor([2]), new_axis(3), new_axis(4)
    marks.point(index, axis, WHY)
    marks.point(index, other, "another")
    assert marks.pointed(index) == [axis, other]
    assert not is_frozen(axis)
    marks.read(index)
    assert settled == [index]
    assert [(atom.frozen, atom.reason) for one in (axis, other) for atom in flat(one)] == [
        (True, WHY),
        (True, "another"),
    ]
    assert marks.pointed(torch.tensor([2])) == []  # of equal values, but another tensor


def test_a_value_at_one_position_gives_the_axis_away_and_is_no_position(marks):
    value, axis = torch.randn(2), new_axis(3)
    marks.single_out(value, axis, "a single index is selected")
    assert marks.pointed(value) == []
    marks.read(value)
    assert is_frozen(axis)


def test_positions_address_an_axis_of_their_length_and_are_permuted_with_it(marks, settled):
    index, found, axis = torch.tensor([2]), new_axis(3), new_axis(3)
    marks.point(index, found, WHY)
    assert marks.address(axis, index)
    assert flat(axis)[0].root is flat(found)[0].root
    assert not is_frozen(axis)
    assert settled == []


def test_positions_along_an_axis_of_another_length_are_data(marks, settled):
    index, found, axis = torch.tensor([2]), new_axis(3), new_axis(4)
    marks.point(index, found, WHY)
    assert not marks.address(axis, index)
    assert [(atom.frozen, atom.reason) for atom in flat(axis)] == [(True, "an index of data")]
    assert is_frozen(found)
    assert settled == [index]


def test_an_index_from_nowhere_is_data(marks):
    axis = new_axis(3)
    assert not marks.address(axis, torch.tensor([0, 2]))
    assert is_frozen(axis)


@pytest.mark.parametrize(
    ("operator", "args", "moves"),
    [
        (torch.ops.aten.clone.default, (), True),
        (torch.ops.aten.unsqueeze.default, (0,), True),
        (torch.ops.aten.split.Tensor, (1,), True),
        (torch.ops.aten.add.Tensor, (1,), False),
        (torch.ops.aten.sum.default, (), False),
    ],
)
def test_marks_go_where_values_are_moved_and_are_read_elsewhere(marks, operator, args, moves):
    index, axis, chosen = torch.tensor([2, 0]), new_axis(3), new_axis(5)
    marks.point(index, axis, WHY)
    marks.single_out(index, chosen, "one of them")
    call = called(operator, index, *args)
    marks.follow(call)
    assert [marks.pointed(out) for out in call.outputs] == [[axis] if moves else []] * len(call.outputs)
    assert is_frozen(axis) is is_frozen(chosen) is not moves
    marks.read(call.outputs[-1])
    assert is_frozen(axis)
    assert is_frozen(chosen)


@pytest.mark.parametrize(("dtype", "moves"), [(torch.int32, True), (torch.float32, False)])
def test_positions_in_another_integer_type_are_positions_and_numbers_are_not(marks, dtype, moves):
    index, axis = torch.tensor([2, 0]), new_axis(3)
    marks.point(index, axis, WHY)
    call = operator_call(torch.ops.aten._to_copy.default, (index,), {"dtype": dtype}, index.to(dtype))
    marks.follow(call)
    assert bool(marks.pointed(call.out)) is moves
    assert is_frozen(axis) is not moves


def test_an_index_is_left_to_the_rule_that_takes_it_and_what_it_picks_from_is_read(marks):
    index, axis, chosen = torch.tensor([2, 0]), new_axis(3), new_axis(5)
    source = torch.randn(3)
    marks.point(index, axis, WHY)
    marks.single_out(source, chosen, "one of them")
    marks.follow(called(torch.ops.aten.index.Tensor, source, [index]))
    marks.follow(called(torch.ops.aten.gather.default, source, 0, index))
    assert not is_frozen(axis)
    assert is_frozen(chosen)
