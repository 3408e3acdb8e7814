"""What is written in place is seen in every tensor that shows the same memory."""

import torch
from torch import Tensor

from lightning_topo.neurons._coupling import flat
from lightning_topo.neurons._operator_call import operator_call
from lightning_topo.neurons._trace import CouplingTrace
from lightning_topo.neurons._writes import written_in_place


def reasons(trace: CouplingTrace, tensor: Tensor) -> set[tuple[bool, str]]:
    return {(atom.frozen, atom.reason) for axis in trace.axes(tensor) for atom in flat(axis)}


def test_the_tensors_that_a_call_writes_are_those_of_its_schema() -> None:
    a, b = torch.zeros(3), torch.ones(3)
    for func, args in ((torch.ops.aten.copy_.default, (a, b)), (torch.ops.aten.t_.default, (a,))):
        call = operator_call(func, args, {}, a)
        assert [id(t) for t in written_in_place(func, call)] == ([id(a)] if len(args) > 1 else [])


def test_a_part_has_the_axes_of_what_was_written_and_so_has_the_whole() -> None:
    trace, weight = CouplingTrace(), torch.randn(4)
    trace.register("weight", weight)
    with trace:
        out = torch.zeros(3, 4)
        row = out[1]
        row.copy_(weight)
        again = out[1]
    [own] = flat(trace.axes(weight)[0])
    assert flat(trace.axes(again)[0]) == [own]
    assert flat(trace.axes(out)[1]) == [own]
    assert not own.frozen
    assert trace.is_weight(out)


def test_what_is_written_through_a_view_that_is_no_box_is_frozen() -> None:
    trace, weight = CouplingTrace(), torch.randn(4)
    trace.register("weight", weight)
    with trace:
        out = torch.zeros(3, 4)
        out[1] = weight
        out.view(12)[4:8] = weight
    assert reasons(trace, weight) == {(True, "written through a view")}
