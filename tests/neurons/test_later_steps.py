"""Neurons of several steps joined: what only one step uses is added, what two say differently is proved no more."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_topo._parameter_coverage import UNUSED, ParameterCoverage
from lightning_topo._tape import StepRecorder, accepted
from lightning_topo.neurons import FoundNeurons, NeuronGroup, ParamSlice, groups_from_tapes
from lightning_topo.neurons._later_steps import joined, renewed


class Branches(nn.Module):
    """A trunk that is read by two heads, and two blocks: each step uses those that it is told to."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3, 8)
        self.left, self.right = nn.Linear(8, 1), nn.Linear(8, 1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)) for _ in range(2))

    def forward(self, x, parts):
        h = self.trunk(x).tanh()
        outputs = {"left": lambda: self.left(h), "right": lambda: self.right(h), "third": lambda: h[:, :1]}
        outputs |= {f"block{k}": (lambda net=net: net(x)) for k, net in enumerate(self.blocks)}
        return sum(outputs[part]() for part in parts)


@pytest.fixture
def branches():
    torch.manual_seed(0)
    return Branches()


def found_with(module, *parts):
    recorder = StepRecorder()
    recorder.begin(module)
    recorder.loss(module(torch.randn(4, 3), parts).square().mean())
    return groups_from_tapes([accepted(tape) for tape in recorder.end()])


def described(found):
    return {group.name: (group.status, {piece.param for piece in group.slices}) for group in found.groups}


def test_blocks_that_only_the_later_step_uses_are_added_behind_the_known_ones(branches):
    first, later = found_with(branches, "left", "block0"), found_with(branches, "left", "block1")
    both = joined(first, later)
    assert [group.name for group in both.groups] == ["trunk", "blocks.0.0", "blocks.1.0"]
    assert {group.status for group in both.groups} == {"verified"}
    assert not [one for one in both.coverage if one.reason == UNUSED and one.param.startswith("blocks")]


def test_a_head_that_only_the_later_step_uses_joins_the_neurons_that_it_reads(branches):
    both = joined(found_with(branches, "left"), found_with(branches, "right"))
    assert described(both) == {"trunk": ("verified", {"trunk.weight", "trunk.bias", "left.weight", "right.weight"})}
    # It is a symmetry of a step with both heads, as a look at one would find.
    assert described(both) == described(found_with(branches, "left", "right"))


def test_a_later_step_that_reads_single_neurons_takes_away_the_proof(branches):
    both = joined(found_with(branches, "left"), found_with(branches, "left", "third"))
    known, rest = (group for group in both.groups if group.n > 1)
    assert (known.name, known.n, known.status) == ("trunk", 8, "unverified")
    assert "a later step" in known.reason
    assert (rest.name, rest.n, rest.status) == ("trunk.weight.1", 7, "verified")  # a symmetry of both steps


def test_a_step_that_uses_nothing_else_changes_nothing(branches):
    first = found_with(branches, "left", "block0")
    for parts in (("left",), ("block0",), ("left", "block0")):
        assert joined(first, found_with(branches, *parts)).groups == first.groups


def test_a_step_that_cannot_be_followed_says_nothing(branches):
    first = found_with(branches, "left")
    assert joined(first, FoundNeurons((), (), ("drawn anew",))) is first


def group_of(name, *params, n=4, status="verified"):
    return NeuronGroup(name, "unit", n, (), tuple(ParamSlice(param) for param in params), status)


def neurons(*groups, unused=(), drawn=()):
    used = dict.fromkeys(param for group in groups for param in group.params)
    coverage = [ParameterCoverage(param, 1, ("some",)) for param in used]
    coverage += [ParameterCoverage(param, 1, (), UNUSED) for param in unused]
    return FoundNeurons(groups, tuple(coverage), (), frozenset(drawn))


@pytest.mark.parametrize(
    ("status", "now", "expected"),
    [
        ("verified", "verified", "verified"),
        ("verified", "inert", "verified"),
        ("inert", "verified", "verified"),
        ("verified", "unverified", "unverified"),
        ("incoming_only", "verified", "incoming_only"),
        ("declared", "unverified", "declared"),
    ],
)
def test_the_status_of_a_group_of_both_steps(status, now, expected):
    both = joined(neurons(group_of("a", "w", status=status)), neurons(group_of("a", "w", status=now)))
    assert [group.status for group in both.groups] == [expected]


def test_groups_of_another_size_contradict_each_other():
    both = joined(neurons(group_of("a", "w")), neurons(group_of("a", "w", n=2)))
    assert [(group.n, group.status) for group in both.groups] == [(4, "unverified")]


def test_a_known_group_in_a_used_parameter_that_the_later_step_does_not_show_is_contradicted():
    both = joined(neurons(group_of("a", "w")), neurons(group_of("b", "v"), replace(group_of("c", "w"), slices=())))
    assert [group.status for group in both.groups if group.name == "a"] == ["verified"]
    used = replace(neurons(group_of("b", "v")), coverage=(ParameterCoverage("w", 1, (), "axis 0: an index of data"),))
    assert [group.status for group in joined(neurons(group_of("a", "w")), used).groups] == ["unverified", "verified"]


def test_names_stay_distinct_and_noise_of_either_step_counts():
    first = neurons(group_of("a", "w"), unused=("v",), drawn=("a",))
    later = neurons(group_of("a", "v"), unused=("w",), drawn=("a",))
    both = joined(first, later)
    assert [group.name for group in both.groups] == ["a", "a.1"]
    assert both.drawn == {"a", "a.1"}


def test_a_changed_module_keeps_what_its_step_leaves_alone():
    first = neurons(group_of("a", "w"), group_of("b", "v"), group_of("c", "u"), drawn=("c",))
    later = neurons(group_of("a", "w", n=6), unused=("v", "u"))
    found = renewed(first, later, changed={"w", "v"})
    assert [(group.name, group.n) for group in found.groups] == [("a", 6), ("c", 4)]
    assert found.drawn == {"c"}
    refused = FoundNeurons((), (), ("drawn anew",))
    assert renewed(first, refused, changed=()) is refused


def test_a_layer_that_was_thawed_is_the_same_group_with_the_flags_of_now():
    frozen = NeuronGroup("a", "unit", 4, (), (ParamSlice("w", trainable=False), ParamSlice("v")), "verified")
    thawed = NeuronGroup("a", "unit", 4, (), (ParamSlice("w"), ParamSlice("v")), "verified")
    [both] = joined(neurons(frozen), neurons(thawed)).groups
    assert both == thawed
