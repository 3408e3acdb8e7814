"""The neurons of a training, found in its own first step: with a proof, or with the reason why there is none."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lightning_topo.neurons._partly_trained as partly_trained
from lightning_topo._tape import StepRecorder, accepted
from lightning_topo._watch.finding import Finding
from lightning_topo.neurons import ParamSlice, rows
from tests.watch.driving import GROUPS, hidden, training_of, two_layers


def recorded(model, loss):
    recorder = StepRecorder()
    recorder.begin(model)
    recorder.loss(loss())
    return [accepted(tape) for tape in recorder.end()]


def step_of(model):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    return recorded(model, lambda: model(x).square().mean())


def test_groups_are_proved_and_every_trained_parameter_has_one_or_a_reason():
    model = two_layers()
    model[0].bias.requires_grad_(False)
    finding = Finding(training_of(model), None, 0)
    groups = finding.groups(step_of(model), "")
    assert [(group.name, group.n, group.status) for group in groups] == [("0", 5, "verified"), ("2", 4, "verified")]
    assert finding.problems == []
    assert [one.param for one in finding.coverage] == [name for name, _ in model.named_parameters()]
    assert all(bool(one.groups) != bool(one.reason) for one in finding.coverage)
    assert [one.param for one in finding.uncovered] == ["4.bias"]
    assert finding.n_entries == sum(p.numel() for p in model.parameters())


def test_what_is_uncovered_is_named_largest_first_and_frozen_parameters_are_not():
    model = nn.ModuleDict({"net": two_layers(), "idle": nn.Linear(30, 2), "frozen": nn.Linear(40, 2)})
    model["frozen"].requires_grad_(False)
    finding = Finding(training_of(model), None, 0)
    x = torch.randn(6, 3)
    finding.groups(recorded(model, lambda: model["net"](x).square().mean()), "")
    first, *others = [one.param for one in finding.uncovered]
    assert (first, sorted(others)) == ("idle.weight", ["idle.bias", "net.4.bias"])


def test_what_no_optimizer_owns_is_not_uncovered_as_a_target_network_that_follows():
    model = nn.ModuleDict({"net": two_layers(), "target": two_layers()})
    x = torch.randn(6, 3)

    def loss():
        with torch.no_grad():
            wanted = model["target"](x)
        return (model["net"](x) - wanted).square().mean()

    for owned, left in ((model["net"], ["net.4.bias"]), (model, ["net.4.bias", "target.4.bias"])):
        finding = Finding(training_of(model, torch.optim.SGD(owned.parameters(), lr=0.1)), None, 0)
        finding.groups(recorded(model, loss), "")
        assert sorted(one.param for one in finding.uncovered) == left


def test_where_no_step_was_recorded_the_structure_gives_incoming_weights_with_the_reason_and_a_remedy():
    model = two_layers()
    finding = Finding(training_of(model), None, 0)
    groups = finding.groups([], "the module is compiled")
    assert [(group.name, group.n, group.status) for group in groups] == [
        ("0", 5, "incoming_only"),
        ("2", 4, "incoming_only"),
    ]
    assert {group.reason for group in groups} == {"the module is compiled: the step was not recorded"}
    first, second = finding.problems
    assert first.message == "A loss was not followed: the module is compiled."
    assert "taken from the structure" in second.message
    assert all("declare_neurons" in problem.remedy for problem in finding.problems)


def test_a_step_without_a_loss_says_so():
    finding = Finding(training_of(two_layers()), (), 0)
    assert finding.groups([], "") == ()
    [problem] = finding.problems
    assert problem.message == "No neurons found: the step had no loss to follow."


def test_declared_groups_are_all_there_is_and_are_proved_or_reported():
    model = two_layers()
    wrong = replace(hidden("2", 4, "4"), name="wrong", slices=(ParamSlice("2.weight"), ParamSlice("2.bias")))
    undecided = [replace(group, status="unverified") for group in (GROUPS[0], wrong)]
    finding = Finding(training_of(model), undecided, 0)
    groups = {group.name: group.status for group in finding.groups(step_of(model), "")}
    assert groups == {"0": "verified", "wrong": "incoming_only"}
    [problem] = finding.problems
    assert problem.group == "wrong"
    # "auto" among them: what is found besides.
    mine = replace(Finding(training_of(model), None, 0).groups(step_of(model), "")[0], name="mine")
    both = Finding(training_of(model), [mine, "auto"], 0)
    assert {group.name: group.n for group in both.groups(step_of(model), "")} == {"mine": 5, "2": 4}


def test_rows_are_a_cloud_by_the_users_word_with_or_without_a_step():
    model = two_layers()
    for tapes, obstacle in ((step_of(model), ""), ([], "the module is compiled")):
        finding = Finding(training_of(model), [rows("4.weight")], 0)
        [group] = finding.groups(tapes, obstacle)
        assert group.n == 2
        assert group.status != "incoming_only"


def test_a_group_of_one_neuron_is_no_cloud():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1), nn.Tanh(), nn.Linear(1, 2))
    finding = Finding(training_of(model), None, 0)
    assert finding.groups(step_of(model), "") == ()
    assert finding.problems[0].message.startswith("No neurons found: the module has no group of two or more")
    reasons = {one.param: one.reason for one in finding.coverage}
    assert reasons["0.weight"] == "0 has a single neuron"


def test_where_there_are_no_neurons_the_reason_of_the_largest_parameter_is_told():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    recorder = StepRecorder()
    recorder.begin(model)
    weight = torch.linalg.householder_product(model[0].weight.T, torch.ones(6))  # which has no rule
    recorder.loss(model[1](torch.randn(7, 8) @ weight).square().mean())
    finding = Finding(training_of(model), None, 0)
    assert finding.groups(recorder.end(), "") == ()
    [problem] = finding.problems
    assert (
        "(0.weight, the largest parameter: axis 0: unknown operator aten.linalg_householder_product" in problem.message
    )


@pytest.mark.parametrize("are_small", [True, False])
@pytest.mark.parametrize("equal", [True, False])
def test_units_that_large_frozen_weights_alone_tell_apart_are_left_out(equal, are_small, monkeypatch):
    if not are_small:
        monkeypatch.setattr(partly_trained, "MOST_WHOLE", 0)
    model = two_layers()
    model[0].requires_grad_(False)
    if equal:
        with torch.no_grad():
            model[2].weight[:, 1] = model[2].weight[:, 0]
    finding = Finding(training_of(model), None, 0)
    groups = finding.groups(step_of(model), "")
    wanted = ["2"] if equal and not are_small else ["0", "2"]
    assert [group.name for group in groups] == wanted
    [weight] = [one for one in finding.coverage if one.param == "2.weight"]
    assert list(weight.groups) == wanted
