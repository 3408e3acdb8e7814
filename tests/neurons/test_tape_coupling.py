"""Axes carried along recorded steps: nothing is run, and what one loss ties is tied for all."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, Tape
from lightning_topo.neurons import groups_from_tapes
from lightning_topo.neurons._coupling import flat
from lightning_topo.neurons._tape_coupling import Coupling, couple
from tests.tape.steps import CountedCalls, batch, labels, mlp


def test_a_fused_recurrent_layer_is_coupled_as_fast_over_many_times_as_over_few() -> None:
    def n_followed(times: int) -> tuple[int, list[str]]:
        torch.manual_seed(0)
        net, x, recorder = nn.LSTM(5, 8, bidirectional=True), torch.randn(times, 4, 5), StepRecorder()
        recorder.begin(net)
        recorder.loss(net(x)[0].square().mean())
        [tape] = recorder.end()
        counted = CountedCalls()
        with counted:
            couple([tape])
        return counted.calls.total(), [group.status for group in groups_from_tapes([tape]).groups]

    few, many = n_followed(3), n_followed(60)
    assert few[1] == many[1] == ["verified", "verified"]
    assert many[0] < 2 * few[0]


def tapes_of(net: nn.Module, *losses) -> tuple[Tape, ...]:
    recorder = StepRecorder()
    recorder.begin(net)
    for loss in losses:
        recorder.loss(loss())
        recorder.resume()
    return recorder.end()


def atoms(coupling: Coupling, name: str) -> list:
    """The atoms of a parameter's axes."""
    [piece] = coupling.trace.pieces[name]
    return [flat(axis) for axis in piece.axes]


def test_a_layer_s_rows_are_the_next_one_s_columns_and_data_and_outputs_are_fixed() -> None:
    net, x, y = mlp(5, 8, 3), batch(0, 6, 5), labels(0, 6)
    coupling = couple(tapes_of(net, lambda: F.cross_entropy(net(x), y)))
    (rows, columns), (out, inner) = atoms(coupling, "0.weight"), atoms(coupling, "2.weight")
    assert rows == atoms(coupling, "0.bias")[0] == inner
    assert [atom.frozen for atom in rows] == [False]
    assert all(atom.frozen for atom in [*columns, *out])
    assert out[0].reason == "classes"


def test_no_operator_is_run_and_no_memory_is_taken() -> None:
    net = nn.Linear(2000, 2000)
    tapes = tapes_of(net, lambda: net(torch.ones(3, 2000)).square().mean())
    counted = CountedCalls()
    with counted:
        coupling = couple(tapes)
    assert not set(counted.calls) - {"empty.memory_format", "empty_strided", "empty"}
    assert all(tensor.is_meta for tensor in coupling.tensors[0].values())
    assert [tuple(t.shape) for slot, t in coupling.tensors[0].items()] == [
        tapes[0].layouts[slot].shape for slot in coupling.tensors[0]
    ]


def test_what_one_loss_ties_is_tied_for_all() -> None:
    net = nn.ModuleDict({"trunk": nn.Linear(5, 8), "one": nn.Linear(8, 8), "other": nn.Linear(8, 2)})
    x = batch(0, 6, 5)

    def hidden() -> Tensor:
        return torch.tanh(net["trunk"](x))

    def plain() -> Tensor:
        return net["one"](hidden()).tanh().square().mean() + net["other"](hidden()).square().mean()

    def skipped() -> Tensor:
        return net["other"](hidden() + net["one"](hidden())).square().mean()

    apart, together = couple(tapes_of(net, plain)), couple(tapes_of(net, plain, skipped))
    assert atoms(apart, "one.weight")[0] != atoms(apart, "one.weight")[1]
    assert atoms(together, "one.weight")[0] == atoms(together, "one.weight")[1]
    assert len(together.tensors) == 2


def test_an_output_s_axes_are_fixed_whatever_it_is() -> None:
    net, recorder = mlp(5, 8, 3), StepRecorder()
    recorder.begin(net)
    recorder.outputs([net(batch(0, 6, 5))])
    coupling = couple(recorder.end())
    assert [atom.reason for atom in atoms(coupling, "2.bias")[0]] == ["an output of the model"]


@pytest.mark.parametrize("statistics", [True, False])
def test_running_statistics_go_with_their_channel_and_other_buffers_are_data(statistics: bool) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
            self.register_buffer("gain", torch.arange(8.0))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return self.last(self.norm(hidden) if statistics else hidden * self.gain)

    net = Scaled()
    coupling = couple(tapes_of(net, lambda: net(batch(0, 6, 5)).square().mean()))
    [rows] = atoms(coupling, "first.bias")
    assert rows[0].frozen != statistics
    assert (atoms(coupling, "norm.running_mean")[0] == rows) == statistics


def test_a_mask_is_permuted_with_what_it_fell_on_and_one_that_fell_on_all_alike_is_not() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))

    def dropped() -> Tensor:
        return net[1](net[0](batch(0, 6, 5)) * (torch.rand(6, 8) < 0.5)).square().mean()

    def by_sample() -> Tensor:
        return net[1](net[0](batch(0, 6, 5)) * (torch.rand(6, 1) < 0.5)).square().mean()

    for loss, carries in ((dropped, True), (by_sample, False)):
        coupling = couple(tapes_of(net, loss))
        [rows] = atoms(coupling, "0.bias")
        drawn = [name for name in coupling.trace.pieces if name.startswith("@")]
        assert [name for name in drawn if rows in atoms(coupling, name)] == (drawn if carries else [])
        assert not rows[0].frozen


def test_a_teacher_that_was_copied_through_data_is_tied_to_its_student() -> None:
    net = nn.ModuleDict({"student": nn.Linear(5, 8), "teacher": nn.Linear(5, 8), "out": nn.Linear(8, 3)})

    def loss() -> Tensor:
        net["teacher"].weight.data = net["student"].weight.data * 1.0
        x = batch(0, 6, 5)
        return (net["out"](net["student"](x)) - net["out"](net["teacher"](x)).detach()).square().mean()

    coupling = couple(tapes_of(net, loss))
    assert atoms(coupling, "teacher.weight")[0] == atoms(coupling, "student.weight")[0]


class Flat(nn.Module):
    """Two layers whose weights are cast into one piece of memory, a column each, as cuDNN's are under autocast."""

    def __init__(self, reads: str = "parts", order: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = (nn.Parameter(torch.randn(shape) / 3) for shape in ((8, 5), (3, 8)))
        self.reads, self.order = reads, order
        self.memory = torch.zeros(64)  # of the user's: nobody but the step may write there

    def forward(self, x: Tensor) -> Tensor:
        memory, parts = torch.zeros(64), {}
        if self.reads == "one's own":
            memory = self.memory
        for k in self.order:
            given, start = (self.up, self.down)[k], (0, 40)[k]
            part = torch.empty(0).set_(memory.untyped_storage(), start, (given.numel(), 1), (1, 1))
            parts[k] = part.copy_(given.view_as(part))
        out = torch.tanh(x @ parts[0].reshape(8, 5).T) @ parts[1].reshape(3, 8).T
        if self.reads == "the whole":
            out = out + (memory * torch.arange(64.0)).sum()
        if self.reads == "across":
            across = torch.empty(0).set_(memory.untyped_storage(), 36, (8,), (1,))
            out = out + (across * torch.arange(8.0)).sum()
        return out


@pytest.mark.parametrize(("reads", "are_free"), [("parts", True), ("the whole", False), ("across", False)])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_weights_in_one_piece_of_memory_are_free_until_the_whole_is_read(reads, are_free, order) -> None:
    net, x, y = Flat(reads, order), batch(0, 6, 5), labels(0, 6)
    tapes = tapes_of(net, lambda: F.cross_entropy(net(x), y))
    groups = groups_from_tapes(tapes).groups
    assert [group.status for group in groups] == ["verified"] * are_free
    if not are_free:
        rows, _ = atoms(couple(tapes), "up")
        assert [(atom.frozen, atom.reason) for atom in rows] == [(True, "written through a view")]


def test_a_replay_writes_to_no_memory_of_the_user_s() -> None:
    net, x, y = Flat("one's own"), batch(0, 6, 5), labels(0, 6)
    tapes = tapes_of(net, lambda: F.cross_entropy(net(x), y))
    net.memory.fill_(7.0)
    found = groups_from_tapes(tapes)
    assert bool((net.memory == 7.0).all())
    assert found.groups or found.uncovered


@pytest.mark.parametrize("kind", ["as it is", "turned"])
def test_a_tensor_without_its_gradient_has_the_axes_of_the_tensor(kind) -> None:
    """`x.data`: no operator has made it. Turned, it has the same shape and other axes."""
    net, x, y = mlp(5, 8, 8, 3), batch(0, 8, 5), labels(0, 8)

    def loss() -> Tensor:
        first = net[1](net[0](x))
        bare = first.data
        if kind == "turned":
            bare = torch.empty(0).set_(bare.untyped_storage(), 0, (8, 8), (1, 8))
        return F.cross_entropy(net[4](net[3](net[2](first * bare))), y)

    groups = groups_from_tapes(tapes_of(net, loss)).groups
    expected = {"0": "verified", "2": "verified"} if kind == "as it is" else {"2": "verified"}
    assert {group.name: group.status for group in groups if group.status == "verified"} == expected
