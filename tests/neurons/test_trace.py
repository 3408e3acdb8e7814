"""The trace itself: pointwise operators, what nobody has a rule for, and what becomes of a rule that fails."""

import pytest
import torch
from torch import nn

from lightning_topo._tape import StepRecorder
from lightning_topo.neurons import _registry as registry
from lightning_topo.neurons import find_neuron_groups, groups_from_tapes, register_rule
from lightning_topo.neurons._coupling import flat
from lightning_topo.neurons._trace import CouplingTrace
from tests.neurons.rules.models import X, free_axes
from tests.tape.steps import batch, mlp


def test_a_rule_that_fails_bars_only_what_it_touches(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def broken(trace, call) -> None:
        raise KeyError("no such axis")

    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    register_rule("aten::tanh", broken)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    with caplog.at_level("WARNING"):
        first, second = find_neuron_groups(model, X)
    assert (first.name, first.status) == ("0", "incoming_only")
    assert "the rule failed of aten.tanh.default (KeyError: 'no such axis')" in first.reason
    assert "rule for aten.tanh.default failed" in caplog.text
    assert (second.name, second.n, second.status) == ("2", 6, "verified")


def test_an_error_in_a_rule_freezes_its_tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(trace, call) -> None:
        raise LookupError("a mistake")

    monkeypatch.setattr(registry, "_RULES", {**registry._RULES, "aten::cumsum": broken})
    net, recorder, x = mlp(5, 8, 7, 3), StepRecorder(), batch(0, 6, 5)
    recorder.begin(net)
    hidden = net[1](net[0](x)).cumsum(0)
    recorder.loss(net[2:](hidden).square().mean())
    groups = groups_from_tapes(recorder.end()).groups
    assert [(group.name, group.status) for group in groups] == [("0", "incoming_only"), ("2", "verified")]
    assert "LookupError: a mistake" in groups[0].reason


FREE = {
    "of one shape": (lambda x, y: x * y.tanh(), [(3, 4), (3, 4)], [3, 4]),
    "a row for all": (lambda x, y: x + y, [(3, 4), (4,)], [3, 4]),
    "a column and a row": (lambda x, y: x * y, [(3, 1), (4,)], [3, 4]),
    "one number": (lambda x, y: x / (1 + y * y), [(3, 4), ()], [3, 4]),
    "zeros": (lambda x: x + torch.zeros(3, 4), [(3, 4)], [3, 4]),
    "numbers of its own along one axis": (lambda x: x + torch.arange(4.0), [(3, 4)], [3]),
    "numbers of its own at every entry": (lambda x: x + torch.arange(12.0).view(3, 4), [(3, 4)], []),
    "zeros that were written to": (lambda x: x + written(torch.zeros(3, 4)), [(3, 4)], []),
    "zeros of which another view was written to": (lambda x: x + seen_before(torch.zeros(3, 4)), [(3, 4)], []),
    "zeros overwritten through a view of all": (lambda x: overwritten(torch.zeros(3, 4), x), [(3, 4)], [3, 4]),
    "in place": (lambda x, y: x.clone().mul_(y).add_(1.0), [(3, 4), (4,)], [3, 4]),
    "three of different shapes": (lambda x, y, z: torch.addcmul(x, y, z), [(3, 4), (4,), (3, 1)], [3, 4]),
}


def written(zeros: torch.Tensor) -> torch.Tensor:
    zeros[0, 1] = 1.0
    return zeros


def seen_before(zeros: torch.Tensor) -> torch.Tensor:
    view = zeros.view(3, 4)
    zeros[0, 1] = 1.0
    return view


def overwritten(zeros: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    zeros.view(3, 4).copy_(x)
    return zeros


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_pointwise_operators_tie_axes_of_one_place_and_free_all_others(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


def traced(function, *shapes):
    trace = CouplingTrace()
    tensors = [torch.randn(shape) for shape in shapes]
    for i, tensor in enumerate(tensors):
        trace.register(f"p{i}", tensor)
    with trace:
        out = function(*tensors)
    return trace, tensors, out


def test_an_operator_that_nobody_knows_fixes_what_it_reads_and_is_counted() -> None:
    def twice(x, y):
        return torch.linalg.qr(x).R + torch.linalg.qr(2 * x).R, y.tanh()

    trace, _, (out, _) = traced(twice, (4, 4), (5,))
    assert dict(trace.unknown) == {"aten.linalg_qr.default": 2}
    assert all(atom.frozen for axis in trace.axes(out) for atom in flat(axis))
    reasons = {atom.reason for axis in trace.pieces["p0"][0].axes for atom in flat(axis)}
    assert reasons == {"unknown operator aten.linalg_qr.default: teach its rule with register_rule"}
    assert not any(atom.frozen for axis in trace.pieces["p1"][0].axes for atom in flat(axis))


def test_a_tensor_from_nowhere_is_data() -> None:
    trace = CouplingTrace()
    data = torch.randn(3, 4)
    assert trace.known_axes(data) is None
    assert all(atom.frozen for axis in trace.axes(data) for atom in flat(axis))
    assert trace.is_activation(data)


def test_axes_of_another_size_than_the_tensor_s_are_refused() -> None:
    trace, _, out = traced(torch.tanh, (3, 4))
    with pytest.raises(RuntimeError, match=r"expected axes of sizes \[3, 4\], got \[4, 3\]"):
        trace.assign(out, trace.axes(out)[::-1])


def test_what_comes_from_parameters_alone_is_a_weight_and_what_met_data_is_not() -> None:
    data = torch.randn(3, 4)
    trace, (weight,), (alone, met, constant) = traced(lambda w: (w.tanh() * 2, w + data, torch.zeros(3)), (3, 4))
    assert [trace.is_weight(t) for t in (weight, alone, met, constant)] == [True, True, False, False]
    assert [trace.is_activation(t) for t in (weight, alone, met, constant)] == [False, False, True, False]


def test_a_position_fixes_its_axis_only_once_it_is_read() -> None:
    def frozen(function) -> bool:
        trace, _, out = traced(function, (3, 4))
        for tensor in out if isinstance(out, tuple) else ():
            trace.read(tensor)
        return trace.pieces["p0"][0].axes[1][0].root.frozen

    assert not frozen(lambda x: x.argmax(1))
    assert not frozen(lambda x: x.argmax(1).unsqueeze(0).clone())
    assert frozen(lambda x: x.argmax(1) + 1)
    assert frozen(lambda x: (x.argmax(1), x))


def test_recorded_numbers_that_fell_on_all_alike_get_axes_of_their_own() -> None:
    trace, _, (_, noise) = traced(lambda x: (x * (noise := torch.rand(3, 4)), noise), (3, 4))
    trace.carry("@0", noise)
    carried, weight = trace.pieces["@0"][0].axes, trace.pieces["p0"][0].axes
    assert [flat(axis)[0].size for axis in carried] == [3, 4]
    assert not any(atom.frozen for axis in [*carried, *weight] for atom in flat(axis))


def test_a_sum_of_what_was_and_what_was_made_of_it_is_a_skip() -> None:
    net = nn.ModuleDict({"a": nn.Linear(5, 6), "b": nn.Linear(6, 6), "c": nn.Linear(5, 6)})

    def tags(function) -> set[str]:
        trace = CouplingTrace()
        for name, p in net.named_parameters():
            trace.register(name, p)
        with torch.no_grad(), trace:
            function(X[0])
        return {tag for _, tag in trace.tags}

    assert "skip" in tags(lambda x: (h := net["a"](x)) + net["b"](h))
    assert "skip" not in tags(lambda x: net["a"](x) + net["c"](x))  # side by side
    assert "skip" not in tags(lambda x: (h := net["a"](x)) + h.tanh())  # no weight between
