"""For every trained parameter its groups, or the reason why it is in none."""

import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo._tape import StepRecorder
from lightning_topo.neurons import NeuronGroup, ParamSlice, groups_from_tapes
from lightning_topo.neurons._coverage import INPUT, parameter_coverage, whole_coverage
from tests.tape.steps import batch, labels, mlp


def test_an_unused_parameter_and_an_output_say_why_they_are_in_no_group() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.idle = mlp(5, 8, 3), nn.Linear(4, 4)

    net, recorder, x, y = Idle(), StepRecorder(), batch(0, 6, 5), labels(0, 6)
    recorder.begin(net)
    recorder.loss(F.cross_entropy(net.net(x), y))
    found = groups_from_tapes(recorder.end())
    reasons = {entry.param: entry.reason for entry in found.uncovered}
    assert reasons.keys() == {"idle.weight", "idle.bias", "net.2.bias"}
    assert reasons["idle.weight"] == "the recorded step does not use it, though others may"
    assert "classes" in reasons["net.2.bias"]
    assert found.uncovered[0].param == "idle.weight"


def test_a_refused_tape_says_why_for_every_parameter() -> None:
    net, recorder, x = mlp(5, 8, 3), StepRecorder(max_calls=3), batch(0, 6, 5)
    recorder.begin(net)
    recorder.loss(net(x).sum())
    found = groups_from_tapes(recorder.end())
    assert found.groups == ()
    assert "more than 3 operators" in found.refused[0]


def reasons(net: nn.Module, loss, **options) -> dict[str, str]:
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(loss())
    return {one.param: one.reason for one in groups_from_tapes(recorder.end(), **options).coverage}


def test_the_reason_names_each_axis_that_holds_no_neurons() -> None:
    net = nn.Linear(5, 3)
    found = reasons(net, lambda: F.cross_entropy(net(batch(0, 6, 5)), labels(0, 6)))
    assert found["weight"] == f"axis 0: classes; axis 1: {INPUT}"
    assert found["bias"] == "axis 0: classes"


def test_a_single_number_and_an_axis_that_nothing_feeds() -> None:
    net = nn.ParameterDict({"gain": nn.Parameter(torch.ones(())), "shift": nn.Parameter(torch.ones(4))})
    found = reasons(net, lambda: (net["gain"] * batch(0, 6, 1)).mean() + net["shift"].square().sum())
    assert found["gain"] == "it is a single number"
    assert found["shift"] == "axis 0: no weight feeds it and is read through it"


def test_a_group_that_was_found_and_not_wanted_is_the_reason() -> None:
    net = mlp(5, 8, 3)
    found = reasons(net, lambda: net(batch(0, 6, 5)).square().mean(), exclude=["0"])
    assert found["0.weight"] == (
        "its group 0 (unit) is watched only where it is asked for: "
        "groups=find_neuron_groups(module, inputs, kinds=['unit', ...])"
    )


def test_without_a_trace_nothing_could_be_followed() -> None:
    net, recorder = mlp(5, 8, 3), StepRecorder()
    recorder.begin(net)
    recorder.loss(net(batch(0, 6, 5)).square().mean())
    tapes = recorder.end()
    group = NeuronGroup("0", "unit", 8, (), (ParamSlice("0.weight"),))
    found = {one.param: (one.groups, one.reason) for one in parameter_coverage([group], tapes, None, {})}
    assert found["0.weight"] == (("0",), "")
    assert found["2.weight"] == ((), "the step could not be followed")


def test_the_whole_coverage_knows_every_parameter_and_keeps_known_reasons() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 3), "lazy": nn.LazyLinear(2), "still": nn.Linear(2, 1, bias=False)})
    net["still"].requires_grad_(False)
    group = NeuronGroup("a", "unit", 3, (), (ParamSlice("a.weight"),))
    known = [
        ParameterCoverage("a.weight", 6, ("a",)),
        ParameterCoverage("a.bias", 3, (), "classes"),
        ParameterCoverage("lazy.bias", 0, ("gone",)),
    ]
    found = whole_coverage(known, [group], dict(net.named_parameters()), "the step did not meet it")
    assert [(one.param, one.numel, one.groups, one.reason) for one in found] == [
        ("a.weight", 6, ("a",), ""),
        ("a.bias", 3, (), "classes"),
        ("lazy.weight", 0, (), "the step did not meet it"),
        ("lazy.bias", 0, (), "gone has a single neuron"),
        ("still.weight", 2, (), "it is not trained"),
    ]


def test_experts_that_lie_in_several_parameters_cover_each_of_them() -> None:
    group = NeuronGroup("experts", "expert", 2, (), (ParamSlice("experts.*.weight"),))
    parameters = {f"experts.{i}.weight": nn.Parameter(torch.ones(2)) for i in range(3)}
    assert [one.groups for one in whole_coverage([], [group], parameters, "no")] == [("experts",), ("experts",), ()]
