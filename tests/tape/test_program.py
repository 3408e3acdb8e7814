"""Calls and tapes: what a call reads and writes, and what a tape says of itself."""

import pytest
import torch
from torch import Tensor, nn

from lightning_topo._tape import Call, Slot, StepRecorder, Tape
from lightning_topo._tape.program import alias, functional_view, leaves, region, set_data, write_positions

ATEN = torch.ops.aten


def test_a_call_reads_the_slots_in_its_arguments_however_nested() -> None:
    call = Call(ATEN.cat.default, ((Slot(4), Slot(2)), 1), {"other": {"a": [Slot(7)]}}, (9,))
    assert call.inputs == (4, 2, 7)
    assert call.name == "aten::cat"
    assert list(leaves(((1, [2]), {"x": (3, None)}))) == [1, 2, 3, None]


def test_an_argument_is_found_by_position_by_name_or_by_default() -> None:
    call = Call(ATEN.add.Tensor, (Slot(0),), {"other": Slot(1)}, (2,))
    assert [call.argument(name) for name in ("self", "other", "alpha", "nothing")] == [Slot(0), Slot(1), 1, None]
    assert Call(region, (Slot(0), (2,), (1,), 0), {}, (1,)).name == "region"


@pytest.mark.parametrize(
    ("operator", "written"),
    [
        (ATEN.add.Tensor, ()),
        (ATEN.add_.Tensor, ((0, "self"),)),
        (ATEN.add.out, ((3, "out"),)),
        (ATEN.view.default, ()),
        (ATEN._foreach_mul_.Scalar, ((0, "self"),)),
        (ATEN.native_batch_norm.default, ((3, "running_mean"), (4, "running_var"))),  # though its schema is silent
        (ATEN.record_stream.default, ()),  # though its schema says so
        (region, ()),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_an_operator_writes(operator, written: tuple) -> None:
    assert write_positions(operator) == written


IN_PLACE = [
    (ATEN.t_.default, ()),
    (ATEN.transpose_.default, (0, 1)),
    (ATEN.swapaxes_.default, (0, 1)),
    (ATEN.unsqueeze_.default, (1,)),
    (ATEN.squeeze_.dim, (0,)),
    (ATEN.squeeze_.default, ()),
    (ATEN.as_strided_.default, ((2,), (1,), 1)),
]


@pytest.mark.parametrize(("operator", "args"), IN_PLACE, ids=str)
def test_the_functional_form_of_an_in_place_view_is_the_same_view(operator, args: tuple) -> None:
    tensor = torch.arange(3.0).reshape(1, 3)
    plain = functional_view(operator)
    assert plain is not None
    view = plain(tensor, *args)
    turned = operator(tensor.detach(), *args)
    assert torch.equal(view, turned)
    assert (view.stride(), view.storage_offset()) == (turned.stride(), turned.storage_offset())
    assert tensor.shape == (1, 3)


def test_an_alias_is_the_memory_without_its_gradient_and_a_region_has_it() -> None:
    source = torch.arange(6.0, requires_grad=True)
    base = source * 1
    part = region(base, (2, 2), (3, 1), 1)
    bare = alias(base, (2, 2), (3, 1), 1)
    assert part.tolist() == bare.tolist() == [[1.0, 2.0], [4.0, 5.0]]
    assert not bare.requires_grad
    part.sum().backward()
    assert source.grad is not None
    assert source.grad.tolist() == [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    square = base[:4].view(2, 2)
    assert alias(square, (2, 2), (1, 2), 0).tolist() == [[0.0, 2.0], [1.0, 3.0]]
    assert alias(base, (), (), 3).item() == 3.0
    # However a replay has laid it out: `stride` is that of the step.
    assert alias(square.T, (2, 2), None, 0).tolist() == [[0.0, 2.0], [1.0, 3.0]]
    alias(base, (6,), (1,), 0).zero_()
    assert not base.any()
    parameter = nn.Parameter(torch.zeros(3))
    set_data(parameter, base[:3] + 5)
    assert parameter.tolist() == [5.0, 5.0, 5.0]
    assert parameter.is_leaf


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + self.shift)


def tape_of(net: nn.Module, x: Tensor) -> Tape:
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(net(x).sum())
    [tape] = recorder.end()
    return tape


def test_a_tape_knows_what_its_loss_depends_on_and_what_it_writes() -> None:
    net = Tied()
    tape = tape_of(net, torch.ones(2, 3))
    assert tape.params == {"first.weight", "second.bias", "shift"}  # shared weights go by their first name
    assert torch.equal(tape.named_values["first.weight"], net.first.weight)
    assert tape.written == frozenset()
    norm = nn.BatchNorm1d(3)
    tape = tape_of(norm, torch.ones(2, 3))
    slots = {names[0]: slot for slot, names in tape.names.items()}
    statistics = ("running_mean", "running_var")
    assert tape.written == {tape.storages[slots[name]] for name in statistics}


def test_a_tape_that_owns_its_constants_does_not_see_later_writes() -> None:
    constant, drawn = torch.ones(2), torch.ones(3)
    tape = Tape((), (0,), {}, {}, {0: constant}, {"@0": drawn}, (), (0,), {})
    own = tape.owning_its_constants()
    constant.zero_()
    drawn.zero_()
    assert own.constants[0].tolist() == [1.0, 1.0]
    assert own.draws["@0"].tolist() == [1.0, 1.0, 1.0]
