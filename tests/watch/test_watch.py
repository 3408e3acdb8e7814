"""One training watched by the engine itself, without a door: what it asks for, tells and leaves behind."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lightning_topo.probes import StepEdge, StepSharpness
from tests.callbacks.training import happened, hooks_of_all_optimizers
from tests.watch.driving import GROUPS, Watched


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


class BySigns(torch.optim.Optimizer):
    """No threshold of stability is known for it."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad.sign(), alpha=0.01 * self.defaults["lr"])


@pytest.mark.parametrize("probe", [StepSharpness, StepEdge])
def test_a_step_is_measured_on_its_own_batch(probe):
    """On another one its loss would be that of test data, which a step need not lower."""
    seen = []

    def loss_fn(module, batch):
        x, y = batch  # or a part of it
        seen.append(x.untyped_storage().data_ptr())
        return F.cross_entropy(module(x), y)

    watched = Watched([probe(2, loss_fn=loss_fn)], optimizer=BySigns)
    batches = [(torch.randn(6, 3), torch.tensor([0, 1] * 3)) for _ in range(8)]
    used = []
    for batch in batches:
        watched.batch(batch)
        used.append(set(seen))
        seen.clear()
    measured = [k + 1 for k, ids in enumerate(used) if ids]
    assert measured == [3, 4, 6, 8]  # at step 2 it asks for the step that it measures, which is the next
    assert all(used[step - 1] == {batches[step - 1][0].untyped_storage().data_ptr()} for step in measured)
    watched.watch.close()
