"""Atoms become groups: their names, kinds, blocks and roles, as the model computes them."""

import inspect
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder
from lightning_topo.neurons import NeuronGroup, ParamSlice, groups_from_tapes
from lightning_topo.neurons._assembly import _company, _parts, assemble, cells_of, distinct, is_carried
from lightning_topo.neurons._coupling import Atom, new_axis, sum_axis, take
from lightning_topo.neurons._tape_coupling import couple
from tests.tape.steps import Attention, Recurrent, batch, labels, mlp, tokens


def assembled(net: nn.Module, loss) -> dict[str, NeuronGroup]:
    """The groups of a loss as they are found, before any is proved."""
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(loss())
    [tape] = recorder.end()
    return {group.name: group for group in assemble(couple([tape]).trace, tape.trainable)}


@pytest.mark.parametrize("student", ["m", "z"])
def test_a_group_bears_the_name_of_what_is_trained_not_of_its_average(student: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    average = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(layer)  # the first one copies
    net, x, recorder = nn.ModuleDict({student: layer, "n": average}), batch(0, 4, 3, 8), StepRecorder()
    recorder.begin(net)
    average.update_parameters(layer)
    with torch.no_grad():
        target = average(x)
    recorder.loss((layer(x) - target).square().mean())
    groups = groups_from_tapes(recorder.end()).groups
    assert {group.name for group in groups} == {
        f"{student}.self_attn.heads",
        f"{student}.self_attn.query_key",
        f"{student}.self_attn.value",
        f"{student}.linear1",
    }
    assert {group.status for group in groups} == {"verified"}


def test_groups_come_in_the_order_in_which_the_model_computes_them() -> None:
    net = nn.ModuleDict({"z": nn.Linear(5, 8), "a": nn.Linear(8, 7), "m": nn.Linear(7, 3)})
    groups = assembled(net, lambda: net["m"](net["a"](net["z"](batch(0, 6, 5)).tanh()).tanh()).square().mean())
    assert list(groups) == ["z", "a"]
    assert {group.status for group in groups.values()} == {"unverified"}


def test_roles_say_what_feeds_and_what_reads_the_neurons() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    [group] = assembled(net, lambda: net(batch(0, 6, 5)).square().mean()).values()
    assert {piece.param: piece.role for piece in group.slices} == {
        "0.weight": "incoming",
        "0.bias": "elementwise",
        "1.weight": "elementwise",
        "1.bias": "elementwise",
        "1.running_mean": "buffer",
        "1.running_var": "buffer",
        "3.weight": "outgoing",
    }
    assert {piece.param for piece in group.slices if not piece.trainable} == {"1.running_mean", "1.running_var"}


def test_channels_of_a_convolution_and_their_groups_have_kinds_and_names_of_their_own() -> None:
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 3, 1))
    groups = assembled(net, lambda: net(batch(0, 2, 2, 8, 8)).square().mean())
    found = {name: (group.kind, group.n, group.block_shape) for name, group in groups.items()}
    assert found == {
        "0": ("channel", 3, (2,)),
        "0.groups": ("channel", 2, ()),
        "2": ("channel", 4, (2,)),
    }


def test_a_recurrent_layer_s_units_read_themselves() -> None:
    net = Recurrent(4)
    groups = assembled(net, lambda: net(batch(0, 3, 4, 5)).square().mean())
    assert {group.kind for group in groups.values()} == {"recurrent"}
    first = groups["rnn.weight_ih_l0"]
    roles = [piece.role for piece in first.slices if piece.param == "rnn.weight_hh_l0"]
    assert set(roles) == {"incoming", "outgoing"}
    assert len(roles) == 2 * 4  # both axes, at each of four gates


def test_heads_are_blocks_of_what_is_inside_of_them() -> None:
    net = Attention(width=8)
    groups = assembled(net, lambda: F.cross_entropy(net(tokens(0)).flatten(0, 1), tokens(0).flatten()))
    [stream] = [groups.pop(name) for name, group in list(groups.items()) if group.kind == "residual"]
    assert {name: (group.kind, group.n, group.block_shape) for name, group in groups.items()} == {
        "layer.self_attn.heads": ("head", 4, ()),
        "layer.self_attn.query_key": ("head_dim", 2, (4,)),
        "layer.self_attn.value": ("head_dim", 2, (4,)),
        "layer.linear1": ("unit", 12, ()),
    }
    assert stream.n == 8
    assert {"embed.weight", "head.weight", "layer.norm1.weight"} <= set(stream.params)


def test_draws_belong_to_a_permutation_and_to_no_neuron() -> None:
    assert (is_carried("@17"), is_carried("net.0.weight")) == (True, False)
    net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    [group] = assembled(net, lambda: net(batch(0, 6, 5)).square().mean()).values()
    [drawn] = [piece for piece in group.slices if is_carried(piece.param)]
    assert (drawn.role, drawn.trainable, drawn.dims) == ("buffer", False, (1,))


def test_units_behind_an_unknown_operator_keep_what_feeds_them() -> None:
    net = mlp(5, 8, 3)
    [group] = assembled(net, lambda: net[2](torch.linalg.qr(net[0](batch(0, 9, 5))).R).square().mean()).values()
    assert (group.status, group.params) == ("incoming_only", ("0.weight", "0.bias"))
    assert "aten.linalg_qr" in group.reason


def group(name: str, param: str) -> NeuronGroup:
    return NeuronGroup(name, "unit", 2, (), (ParamSlice(param),))


def test_groups_of_one_name_are_told_apart_by_their_parameter_and_then_by_a_number() -> None:
    same = [group("rnn", "rnn.weight_ih_l0"), group("rnn", "rnn.weight_ih_l1"), group("out", "out.weight")]
    assert [one.name for one in distinct(same)] == ["rnn.weight_ih_l0", "rnn.weight_ih_l1", "out"]
    alike = [group("rnn", "rnn.weight"), group("rnn", "rnn.weight")]
    assert [one.name for one in distinct(alike)] == ["rnn.weight.0", "rnn.weight.1"]
    assert distinct([]) == []


def test_a_tensor_is_refined_until_every_axis_is_one_atom() -> None:
    heads = new_axis(12)
    inner = list(heads)
    outer = take(inner, 3)
    assert outer is not None
    joined = sum_axis([[Atom(2)], [Atom(5)]])
    parts = list(cells_of([heads, joined]))
    assert [steps for steps, _ in parts] == [
        (("unflatten", 0, (3, 4)), ("narrow", 2, 0, 2)),
        (("unflatten", 0, (3, 4)), ("narrow", 2, 2, 5)),
    ]
    tensor = torch.zeros(12, 7)
    for steps, cells in parts:
        view: Tensor = ParamSlice("w", steps, (0,)).view(tensor)
        assert [cell.size for cell in cells if cell is not None] == list(view.shape)


@st.composite
def axes(draw: st.DrawFn, atoms: list[Atom], depth: int = 2) -> list[Atom]:
    """An axis: an atom, or a product or a sum of axes."""
    make = draw(st.sampled_from(["atom", "product", "sum"] if depth else ["atom"]))
    if make == "atom":
        return [draw(st.sampled_from(atoms))]
    parts = [draw(axes(atoms, depth - 1)) for _ in range(draw(st.integers(2, 3)))]
    return [atom for part in parts for atom in part] if make == "product" else sum_axis(parts)


@given(st.data())
def test_the_company_of_an_atom_is_what_is_in_all_parts_that_hold_it(data: st.DataObject) -> None:
    """Held against the parts themselves, which are as many as the product of those of the axes."""
    atoms = [Atom(size) for size in (2, 2, 3, 3, 5)]
    tensor = [data.draw(axes(atoms)) for _ in range(data.draw(st.integers(1, 3)))]
    implied = {atoms[0]: atoms[4]} if data.draw(st.booleans()) else {}
    wanted: dict[Atom, set[Atom]] = {}
    for _, cells in cells_of(tensor):
        part = {atom for atom in cells if atom is not None}
        part |= {implied[atom] for atom in part if atom in implied}
        for atom in part:
            wanted[atom] = wanted.get(atom, part) & part
    found: dict[Atom, set[Atom]] = {}
    for atom, company in _company([_parts(atom, implied, frozenset()) for axis in tensor for atom in axis]):
        found[atom] = found.get(atom, set(company)) & set(company)
    assert found == wanted


class Positions(nn.Module):
    """A sequence that is taken apart one position at a time, with a table of pairs of positions."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.inner, self.out, self.length = nn.Linear(3, 4), nn.Linear(4, 1), length
        self.heads, self.mix = nn.Linear(3, 2), nn.Linear(2, 1)
        self.bias = nn.Parameter(torch.randn(2, length, length))

    def forward(self, x: Tensor) -> Tensor:
        rest = torch.tanh(self.inner(x))
        score = torch.sigmoid(self.heads(x)).mT[:, None] * self.bias  # heads, positions, positions
        for _ in range(self.length - 1):
            rest, score = rest[1:], score[:, 1:, 1:]
        return self.out(rest).sum() + self.mix(score.sum((1, 2))).sum()


def test_a_long_sequence_taken_position_by_position_needs_no_recursion_and_no_square() -> None:
    length = 160
    net, x = Positions(length), torch.randn(length, 3)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + length)
    try:
        found = assembled(net, lambda: net(x))
    finally:
        sys.setrecursionlimit(limit)
    assert found["inner"].n == 4
    [slices] = [group.slices for group in found.values() if "heads.weight" in group.params]
    assert {piece.param for piece in slices} == {"heads.weight", "heads.bias", "bias", "mix.weight"}
    assert len(slices) < 2 * length


@pytest.mark.parametrize("kinds", [("residual",), ("unit",)])
def test_a_neuron_that_nothing_reads_or_nothing_feeds_is_none(kinds) -> None:
    """What the loss is computed from, and what comes in as data, are no neurons."""
    net, recorder, x, y = mlp(5, 8, 3), StepRecorder(), batch(0, 6, 5), labels(0, 6)
    recorder.begin(net)
    recorder.loss(F.cross_entropy(net(x), y))
    found = groups_from_tapes(recorder.end(), kinds=kinds).groups
    assert [one.name for one in found] == (["0"] if kinds == ("unit",) else [])
