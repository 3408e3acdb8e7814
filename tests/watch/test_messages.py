"""What the engine reports of itself: each event says whom it concerns and what to do."""

import torch

from lightning_topo._watch.membership import Change
from lightning_topo._watch.messages import (
    lost_result,
    members_changed,
    moved_outside,
    parts_used,
    renewed_samples,
    stale_samples,
    unseen_step,
    unwatched,
)
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.neurons._coverage import UNUSED, ParameterCoverage
from lightning_topo.phases import DETECTED


def test_each_is_an_event_with_a_remedy_that_no_replay_makes_again():
    sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    events = [
        lost_result("persistence", "the worker died", 3, 0),
        members_changed(Change(frozenset("ab"), frozenset("c"), frozenset("d"), True), ["net.0"], 3, 0),
        moved_outside(sgd, ["a"], 3, 0),
        unseen_step([sgd], ["a", "b"], 3, 0),
        unwatched([ParameterCoverage("a", 4, (), "an output")], 16, 3, 0),
        stale_samples(1, 2, "why", "a loss of its own", 3, 0),
        renewed_samples(4, 0),
    ]
    assert not {event.name for event in events} & DETECTED
    assert all(event.message and event.remedy for event in events)
    assert [event.severity.value for event in events] == ["warn", "info", "info", "warn", "info", "warn", "info"]
    assert events[1].message.startswith("a, b joined the training; c left the training; d changed shape or dtype.")
    assert "SGD" in events[2].message
    assert "SGD" in events[3].message


def test_the_largest_parameters_without_a_group_are_named_with_their_reasons():
    event = unwatched([ParameterCoverage(name, 9, (), f"reason {name}") for name in "bcdea"], 450, 1, 0)
    assert event.value == 5
    assert event.message.startswith("5 trainable parameters, 10 % of all entries, belong to no group of neurons. ")
    assert "b (reason b); c (reason c); d (reason d)" in event.message
    alone = unwatched([ParameterCoverage("b", 9, (), "an output")], 2_000, 1, 0)
    said = "One trainable parameter, 0.45 % of all entries, belongs to no group of neurons. It is b (an output)."
    assert alone.message == said
    assert unwatched([], 450, 1, 0) is None


def test_the_share_that_the_first_step_does_not_use_is_said():
    left = [ParameterCoverage("expert.weight", 12, (), UNUSED), ParameterCoverage("head.bias", 2, (), "an output")]
    assert "The first step does not use 75 % of all entries" in unwatched(left, 16, 1, 0).message
    assert "does not use" not in unwatched(left[1:], 16, 1, 0).message


def test_a_group_that_grew_was_not_unused_as_a_whole():
    group = NeuronGroup("enc", "unit", 4, (), (ParamSlice("enc.weight"),))
    said = parts_used([group], 20, 21, 3)
    assert said.message.startswith("The first step did not use all of enc, later ones do.")
    assert said.message.endswith("Where they moved before that, they are open, as they were not known: step 20.")
    assert "open" not in parts_used([group], 21, 21, 3).message


def test_a_part_that_a_guard_has_not_held_is_a_warning():
    group = NeuronGroup("enc", "unit", 4, (), (ParamSlice("enc.weight"),))
    said = parts_used([group], 20, 21, 3, is_guarded=True)
    assert said.message.endswith("Held below the critical point from step 22 on, and not before.")
    assert (said.severity, parts_used([group], 20, 21, 3).severity) == ("warn", "info")
