"""One training watched by the engine itself, without a door: what it asks for, tells and leaves behind."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lightning_topo import Distortion
from lightning_topo._watch.settings import WatchSettings
from lightning_topo._watch.watch import Watch
from lightning_topo.outputs._outputs import Outputs
from tests.callbacks.training import happened, hooks_of_all_optimizers
from tests.watch.driving import GROUPS, Kept, training_of, two_layers


class Watched:
    """A training by hand; `kept` is all that its engine has sent."""

    def __init__(self, probes=(Distortion(1),), saved=None, step=0, **settings):
        self.model = two_layers()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.training = training_of(self.model, self.optimizer)
        self.training.step = step
        self.kept = Kept()
        options = {"max_overhead": None, "on_error": "raise"} | settings
        settings = WatchSettings(probes=tuple(probes), **options)
        self.watch = Watch(self.training, settings, Outputs((self.kept,)), saved)
        self.x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))

    def batch(self, *, updates=True, breaks=False):
        self.watch.before_batch()
        loss = F.cross_entropy(self.model(self.x), torch.tensor([0, 1] * 3))
        self.watch.before_backward(loss)
        loss.backward()
        self.watch.after_backward()
        if breaks:
            self.watch.break_off()
            return
        if updates:
            self.watch.before_update(self.optimizer)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.watch.after_batch(loss.detach())
        self.training.step = max(self.training.step, self.watch.last_step)

    def batches(self, n):
        for _ in range(n):
            self.batch()

    def steps(self, probe):
        return sorted({step for step, _, _ in self.kept.of(probe)})


@pytest.fixture
def watched():
    made = Watched()
    yield made
    made.watch.close(in_haste=True)


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


def test_a_batch_that_broke_off_is_no_step_and_leaves_no_mode(watched):
    watched.batch(breaks=True)
    assert _get_current_dispatch_mode_stack() == []
    watched.optimizer.zero_grad()
    watched.batch()
    assert (watched.watch.last_step, watched.steps("distortion")) == (1, [1])
    assert happened(watched.watch.events) == []


def test_it_is_closed_once_and_leaves_no_hook_behind():
    before = hooks_of_all_optimizers()
    watched = Watched()
    assert hooks_of_all_optimizers() == before + 2
    watched.batch()
    assert watched.watch.close()
    assert not watched.watch.close()
    assert not watched.watch.close(in_haste=True)
    assert hooks_of_all_optimizers() == before
    assert watched.kept.order.count("end") == 1
    assert watched.steps("coverage") == [1]


def test_its_state_is_plain_and_another_goes_on_from_it():
    first, whole = Watched(groups=GROUPS), Watched(groups=GROUPS)
    for _ in range(3):
        first.batch()
        whole.batch()
    state = json.loads(json.dumps(first.watch.state()))
    first.watch.close()
    second = Watched(groups=GROUPS, saved=state, step=3)
    second.model.load_state_dict(first.model.state_dict())
    for _ in range(2):
        second.batch()
        whole.batch()
    for made in (second, whole):
        made.watch.close()
    late = [m for m in whole.kept.of("distortion") if m[0] > 3]
    assert [(step, group, values["critical_ratio"]) for step, group, values in second.kept.of("distortion")] == [
        (step, group, values["critical_ratio"]) for step, group, values in late
    ]
    assert second.watch.state()["step"] == 5


def test_a_users_error_is_raised_where_that_is_asked_for_and_else_an_event():
    class Broken:
        name = "broken"

        def measure(self, capture):
            raise OSError("no such thing")

    watched = Watched([Broken()], on_error="warn")
    watched.batches(25)
    watched.watch.close()
    [event] = happened(watched.watch.events)
    assert (event.name, event.message) == ("probe_failed", "broken failed: no such thing")
    watched = Watched([Broken()])
    with pytest.raises(OSError, match="no such thing"):
        watched.batches(25)
    watched.watch.close(in_haste=True)


def test_parameters_that_nobody_updates_by_an_optimizer_are_said_to_be_unseen(watched):
    watched.batch()
    for _ in range(2):
        watched.watch.before_batch()
        with torch.no_grad():
            watched.model[2].weight.mul_(1.01)
        watched.watch.after_batch(None)
        watched.training.step = watched.watch.last_step
    assert watched.watch.has_unseen_steps
    assert [(event.name, event.step) for event in happened(watched.watch.events)] == [("unseen_step", 2)]
    watched.watch.close()
    states = {(step, group): values["state"] for step, group, values in watched.kept.of("coverage")}
    assert states[1, "0"] == 3.0
    assert states[3, "0"] == states[3, "2"] == 0.0


def test_a_gate_and_a_guard_have_their_say_in_the_record(watched):
    watched.watch.proposed("0", 1.2)
    watched.watch.proposed("0", 1.1)
    watched.batch()
    [values] = [values for _, group, values in watched.kept.of("distortion") if group == "0"]
    assert values["proposed_critical_ratio"] == 1.2
    watched.batch()  # of the batch before, and of it alone
    assert "proposed_critical_ratio" not in watched.kept.of("distortion")[-2][2]
    watched.watch.stopped({"stopped": 1.0})
    assert watched.kept.of("gate") == [(2, "", {"stopped": 1.0})]


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


def calibrated(n_strange, n_batches):
    watched = Watched()
    watched.model = Calibrating(n_strange)
    watched.optimizer = torch.optim.SGD(watched.model.parameters(), lr=0.1)
    watched.training = training_of(watched.model, watched.optimizer)
    options = WatchSettings(probes=(Distortion(1),), max_overhead=None, on_error="raise")
    watched.watch = Watch(watched.training, options, Outputs((watched.kept,)), None)
    watched.batches(n_batches)
    watched.watch.close()
    return watched


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
