"""When neurons are looked for: in the first step that can be followed, and again where parameters are new."""

import pytest
import torch
from torch.nn.utils import parametrize

import lightning_topo.neurons._partly_trained as partly_trained
from lightning_topo import Distortion
from lightning_topo._watch.finding import Finding
from lightning_topo._watch.settings import WatchSettings
from lightning_topo._watch.watch import Watch
from lightning_topo.outputs._outputs import Outputs
from tests.callbacks.training import happened
from tests.watch.driving import LowRank, Watched, training_of, two_layers


def test_neurons_are_found_in_the_first_step_that_updates_and_measured_from_it_on(watched):
    watched.batch(updates=False)
    assert (watched.watch.groups, watched.kept.order) == ((), [])
    for _ in range(3):
        watched.batch()
    assert [(group.name, group.n, group.status) for group in watched.watch.groups] == [
        ("0", 5, "verified"),
        ("2", 4, "verified"),
    ]
    assert watched.kept.order[0] == "start"
    assert watched.steps("distortion") == watched.steps("training") == [1, 2, 3]
    assert watched.watch.last_step == 3
    assert {"topology/critical_ratio", "topology/coverage", "topology/phase"} <= watched.training.values.keys()


def test_neurons_can_be_asked_for_before_the_first_update(watched):
    watched.watch.before_batch()
    loss = watched.model(watched.x).square().mean()
    watched.watch.before_backward(loss)
    found = watched.watch.find_neurons()
    assert [group.name for group in found] == ["0", "2"]
    assert watched.watch.find_neurons() is found


class Calibrating(torch.nn.Module):
    """Does in its first steps, by NumPy and so unseen, what it never does again."""

    def __init__(self, n_strange):
        super().__init__()
        self.net, self.n_strange = two_layers(), n_strange

    def forward(self, x):
        self.n_strange -= 1
        x = self.net[0](x)
        if self.n_strange >= 0:
            x.detach().numpy()[:] *= 2.0
        return self.net[1:](x)


def watching(model, n_batches):
    """A training of a model, watched step by step to its end."""
    watched = Watched()
    watched.model = model
    watched.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched.training = training_of(model, watched.optimizer)
    options = WatchSettings(probes=(Distortion(1),), max_overhead=None, on_error="raise")
    watched.watch = Watch(watched.training, options, Outputs((watched.kept,)), None)
    watched.batches(n_batches)
    watched.watch.close()
    return watched


def calibrated(n_strange, n_batches):
    return watching(Calibrating(n_strange), n_batches)


def states_of(watched):
    return {(step, group): values["state"] for step, group, values in watched.kept.of("coverage")}


def test_a_first_step_that_cannot_be_followed_is_open_and_the_next_one_shows_the_neurons():
    watched = calibrated(1, 5)
    assert {group.name: group.status for group in watched.watch.groups} == {"net.0": "verified", "net.2": "verified"}
    assert not [event for event in happened(watched.watch.events) if event.name == "probe_failed"]
    [note] = [event for event in happened(watched.watch.events) if event.name == "gap"]
    assert (note.step, note.severity) == (1, "info")
    assert "the replay's loss differs" in note.message
    states = states_of(watched)
    assert states[1, "net.0"] == states[1, "net.2"] == 0.0
    assert states[5, "net.0"] == states[5, "net.2"] == 3.0
    assert [step for step, group, _ in watched.kept.of("distortion") if group == "net.0"] == [2, 3, 4, 5]


@pytest.mark.parametrize("n_batches", [1, 4])
def test_where_no_step_can_be_followed_that_is_said_also_where_the_first_was_the_last(n_batches):
    watched = calibrated(9, n_batches)
    assert {group.status for group in watched.watch.groups} == {"incoming_only"}
    messages = [event.message for event in happened(watched.watch.events) if event.name == "probe_failed"]
    assert len(messages) == 2
    assert "the replay's loss differs" in messages[0]
    assert states_of(watched)[1, "net.0"] == 0.0


def test_a_layer_that_is_added_is_looked_for_in_the_next_step():
    """The groups that are still there keep their beginning."""
    watched = Watched()
    watched.batches(2)
    began = {name: watched.watch._measuring.snapshots.reference[name].clone() for name in ("0", "2")}
    watched.model.append(torch.nn.Tanh())
    watched.model.append(torch.nn.Linear(2, 2))
    watched.optimizer.add_param_group({"params": list(watched.model[-1].parameters())})
    watched.batches(3)
    assert [group.name for group in watched.watch.groups] == ["0", "2", "4"]
    assert all(torch.equal(watched.watch._measuring.snapshots.reference[name], began[name]) for name in began)
    assert [step for step, group, _ in watched.kept.of("distortion") if group == "4"][:1] == [4]
    [event] = [e for e in watched.watch.events if "joined the training" in e.message]
    assert event.step == 3
    watched.watch.close()


@pytest.mark.parametrize("kind", ["wider", "renamed", "another dtype"])
def test_where_a_parameter_is_another_its_step_is_open_and_the_next_one_is_measured(kind):
    watched = Watched()
    watched.batches(4)
    if kind == "wider":
        watched.model[2], watched.model[4] = torch.nn.Linear(5, 9), torch.nn.Linear(9, 2)
        watched.optimizer = torch.optim.SGD(watched.model.parameters(), lr=0.1)
    elif kind == "renamed":
        parametrize.register_parametrization(watched.model[0], "weight", torch.nn.Identity())
    else:
        watched.model.double()
        watched.x = watched.x.double()
    watched.batches(3)
    watched.watch.close()
    assert {(step, state > 0.0) for (step, group), state in states_of(watched).items() if group == "0"} == {
        (4, True),
        (5, False),
        (6, True),
        (7, True),
    }
    assert not [event for event in watched.watch.events if event.name == "probe_failed"]
    [event] = [event for event in watched.watch.events if event.name == "gap"]
    wanted = "weight.original joined the training; 0.weight left" if kind == "renamed" else "changed shape or dtype"
    assert (event.step, wanted in event.message) == (5, True)


def test_a_layer_that_was_left_out_because_it_was_frozen_is_looked_for_when_it_thaws(monkeypatch):
    """Of its neurons only equal biases were trained, and what was frozen too large: that told nothing of them."""
    monkeypatch.setattr(partly_trained, "MOST_WHOLE", 0)
    watched = Watched()
    weights = [watched.model[k].weight for k in (0, 2)]
    torch.nn.init.zeros_(watched.model[0].bias)
    for weight in weights:
        weight.requires_grad_(False)
    watched.batches(2)
    assert [group.name for group in watched.watch.groups] == ["2"]
    for weight in weights:
        weight.requires_grad_(True)
    watched.batches(4)
    assert [group.name for group in watched.watch.groups] == ["0", "2"]
    [event] = [e for e in watched.watch.events if "joined the training" in e.message]
    assert "looked for again" in event.remedy
    assert {step for step, group, _ in watched.kept.of("distortion") if group == "0"} >= {5, 6}
    watched.watch.close()
    states = states_of(watched)
    assert states[3, "0"] == 0.0  # it had thawed, and nobody looked
    assert states[6, "0"] > 0.0
    assert (3, "2") not in states or states[3, "2"] > 0.0


def test_a_parameter_in_no_group_that_comes_and_goes_is_looked_for_once(monkeypatch):
    watched = Watched()
    looked = []
    find = Finding.groups
    monkeypatch.setattr(Finding, "groups", lambda *args, **kwargs: looked.append(1) or find(*args, **kwargs))
    bias = watched.model[4].bias
    bias.requires_grad_(False)
    for _ in range(4):
        watched.batches(2)
        bias.requires_grad_(not bias.requires_grad)
    assert [group.name for group in watched.watch.groups] == ["0", "2"]
    assert len(looked) == 2
    watched.watch.close()


class Dropping(torch.nn.Module):
    """Uses one of its blocks in each step, as it is told."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(two_layers() for _ in range(3))
        self.turns = iter(())

    def forward(self, x):
        return self.blocks[next(self.turns, 0)](x)


def in_turns(turns, n_batches):
    model = Dropping()
    model.turns = iter(turns)
    return watching(model, n_batches)


def names_of(*blocks):
    return [f"blocks.{block}.{layer}" for block in blocks for layer in (0, 2)]


def test_blocks_that_take_turns_are_found_though_no_step_has_all_of_them():
    watched = in_turns([0, 1] * 4, 8)
    assert [group.name for group in watched.watch.groups] == names_of(0, 1)
    assert {group.status for group in watched.watch.groups} == {"verified"}
    states = states_of(watched)
    # Block 1 moves in step 2; step 3 does not show it and step 4 does.
    assert states[2, "blocks.1.0"] == 0.0
    assert (3, "blocks.1.0") not in states  # it rests
    assert states[8, "blocks.1.0"] == 3.0
    # What moves them, and is not known, may be part of what is known: the whole network is open in step 2.
    assert [step for (step, group), state in states.items() if group == "blocks.0.0" and state == 0.0] == [2]
    [note] = [event for event in happened(watched.watch.events) if "did not use" in event.message]
    assert (note.name, note.step, note.value) == ("gap", 4, 2.0)
    assert "steps 2 to 3" in note.message


def test_no_block_is_looked_for_before_it_moves_and_looks_become_rare(monkeypatch):
    looked = []
    find = Finding.groups
    monkeypatch.setattr(Finding, "groups", lambda *args, **kwargs: looked.append(1) or find(*args, **kwargs))
    assert [group.name for group in in_turns([0] * 9, 9).watch.groups] == names_of(0)
    assert len(looked) == 1
    watched = in_turns([0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 14)
    assert [group.name for group in watched.watch.groups] == names_of(0, 1, 2)
    assert len(looked) == 1 + 3
    assert max(event.step for event in watched.watch.events if "did not use" in event.message) == 7


def test_a_block_that_is_not_shown_again_is_given_up_for_a_while(monkeypatch):
    looked = []
    find = Finding.groups
    monkeypatch.setattr(Finding, "groups", lambda *args, **kwargs: looked.append(1) or find(*args, **kwargs))
    watched = in_turns([0, 1] + [0] * 20, 22)
    assert [group.name for group in watched.watch.groups] == names_of(0)
    assert len(looked) == 1
    states = {step: state for (step, group), state in states_of(watched).items() if group == "blocks.0.0"}
    assert [step for step, state in states.items() if state == 0.0] == [2]
    assert states[22] == 3.0


def adapted_layers():
    model = two_layers()
    for k in (0, 2):
        model[k] = LowRank(model[k].requires_grad_(False))
    return model


@pytest.mark.parametrize("change", ["another rank", "merged"])
def test_an_adapter_that_changes_or_goes_leaves_the_other_layers_watched(monkeypatch, change):
    monkeypatch.setattr("tests.watch.driving.two_layers", adapted_layers)
    watched = Watched()
    watched.batches(3)
    watched.model[0] = LowRank(watched.model[0].base, 3) if change == "another rank" else watched.model[0].base
    watched.optimizer = torch.optim.SGD([p for p in watched.model.parameters() if p.requires_grad], lr=0.1)
    watched.batches(4)
    watched.watch.close()
    assert not [event for event in watched.watch.events if event.name == "probe_failed"]
    [event] = [event for event in watched.watch.events if event.name == "gap"]
    assert (event.step, "looked for again" in event.remedy) == (4, True)
    said = "changed shape or dtype" if change == "another rank" else "0.base.bias, 0.base.weight are not what they were"
    assert said in event.message
    states = states_of(watched)
    present = {group.name for group in watched.watch.groups}
    assert len(present) >= 3
    assert {states[7, group] for group in present} == {3.0}
    # Neurons that are no more are open in the step that has changed them, and in none later.
    assert {group for (step, group), state in states.items() if step > 4 and state == 0.0} == set()


@pytest.mark.parametrize("every", [1, 3])
def test_networks_that_are_frozen_in_turns_are_said_to_be_a_few_times(watched, every):
    for k in range(60):
        for layer in (watched.model[0], watched.model[4]):
            is_trained = (k // every % 2 == 0) == (layer is watched.model[0])
            for parameter in layer.parameters():
                parameter.requires_grad_(is_trained)
                parameter.grad = None
        watched.batch()
    said = [event for event in happened(watched.watch.events) if "joined the training" in event.message]
    assert len(said) == 6
    assert [event.message.endswith("this is not said again.") for event in said] == [False] * 4 + [True] * 2


def test_an_update_behind_the_last_step_is_said_to_belong_to_none(watched):
    for _ in range(3):
        watched.batch()
    watched.model(watched.x).square().mean().backward()
    watched.optimizer.step()
    watched.watch.close()
    [said] = [event for event in happened(watched.watch.events) if "belongs to no step" in event.message]
    assert (said.name, said.step) == ("gap", 3)
    assert "SGD has moved 0.bias, 0.weight, 2.bias and 3 more parameters once more" in said.message


def test_what_is_frozen_in_the_middle_and_written_behind_an_update_is_seen(watched):
    for k in range(8):
        if k == 3:
            watched.model[2].requires_grad_(False)
            for parameter in watched.model[2].parameters():
                parameter.grad = None
        watched.watch.before_batch()
        loss = torch.nn.functional.cross_entropy(watched.model(watched.x), torch.tensor([0, 1] * 3))
        watched.watch.before_backward(loss)
        loss.backward()
        watched.watch.after_backward()
        watched.optimizer.step()
        watched.optimizer.zero_grad()
        if k == 6:
            with torch.no_grad():
                watched.model[2].weight.mul_(30.0)
        watched.watch.after_batch(loss.detach())
        watched.training.step = watched.watch.last_step
    measured = {m.step for m in watched.kept.measured if m.probe == "distortion" and m.group == "0"}
    assert measured == {1, 2, 3, 4, 5, 6, 8}
    assert states_of(watched)[7, "0"] == 0.0
