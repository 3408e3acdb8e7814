"""The losses of a step that several optimizers share: each with the parameters that its update moves."""

import pytest
import torch
from torch import nn

from lightning_topo._tape.closing import empty_tape
from lightning_topo._watch.owners import Owners
from lightning_topo._watch.recording import Recording
from lightning_topo._watch.steps import Steps
from lightning_topo._watch.training_loss import TrainingLoss, _usable
from lightning_topo.stability import hessian
from tests.watch.driving import training_of


def owned(*happened, left=()):
    """What each loss owns and its place, where a loss is named by the parameters whose gradients it changes."""
    parameters = {name: nn.Parameter(torch.zeros(1)) for name in "abc"}
    owners, tapes = Owners(), []
    for what in happened:
        kind, _, names = what.partition(" ")
        if kind == "loss":
            cleared = [name for name, p in parameters.items() if p.grad is None]
            owners.before_loss(parameters, cleared)
            for name in names:
                p = parameters[name]
                p.grad = torch.ones(1) if p.grad is None else p.grad.add_(1.0)
            owners.after_loss(parameters)
            tapes.append(empty_tape(""))
        elif kind == "moves":
            owners.moved(names)
        else:
            for name in names:
                parameters[name].grad = None
    found = owners.noted(tapes, parameters)
    return [None if tape.owners is None else f"{''.join(sorted(tape.owners))}{tape.place}" for tape in found]


def test_a_loss_owns_what_an_update_moves_by_its_gradient():
    assert owned("loss a", "moves a", "loss b", "moves b") == ["a0", "b0"]
    assert owned("loss ab", "moves a", "clear b", "loss b", "moves b") == ["a0", "b0"]  # what the first left is cleared
    assert owned("loss ab", "moves a", "loss b", "moves b") == ["ab0", "b0"]  # and here it is not
    assert owned("loss ab", "moves a", "moves b", "clear ab", "loss c", "moves c") == ["ab0", "c0"]
    assert owned("loss a", "loss b", "moves a", "moves b") == ["a0", "b0"]  # each its own, before all updates


def test_losses_of_one_update_have_places_and_those_of_several_have_none():
    assert owned("loss a", "loss a", "moves a") == ["a0", "a1"]
    assert owned("loss a", "moves a", "clear a", "loss a", "moves a") == ["a0", "a0"]
    assert owned("loss a", "loss a", "moves a", "clear a", "loss a", "moves a") == ["a0", "a1", "a0"]


def test_a_loss_without_an_update_owns_nothing_but_what_waits_for_the_next_batch():
    assert owned("loss a", "moves a", "clear a", "loss b", "clear b") == ["a0", "0"]
    assert owned("loss a", "moves a", "clear a", "loss b") == ["a0", "b0"]  # accumulated
    assert owned("loss ab", "moves a") == ["a0"]  # an update has followed: what it has left is nobody's
    assert owned("loss ab") == ["ab0"]
    assert owned("loss ab", "clear ab") == [None]  # nothing is known


class Two(nn.Module):
    """Losses with curvature 10 and 1, the second in parameters of the first as well."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    def losses(self, x):
        yield 5.0 * (self.one * x[:, :3]).square().sum(1).mean() + 0.1 * self.other.square().sum()
        yield 0.5 * (self.other * x[:, :2]).square().sum(1).mean() - 30.0 * self.one.square().sum()


@pytest.fixture
def watched():
    """A step of two optimizers, one behind each loss, recorded."""
    net = Two()
    optimizers = [torch.optim.SGD([p], lr=1e-3) for p in (net.one, net.other)]
    loss = TrainingLoss(training_of(net), 0)
    recording = Recording(training_of(net), loss)
    steps = Steps(
        net,
        on_settle=lambda names: None,
        on_outside=lambda optimizer, names: None,
        on_begin=lambda runs_closure, names: recording.update_begins(names, runs_closure=runs_closure),
        on_end=recording.update_ends,
    )
    x = torch.ones(4, 3)
    recording.begin(x, 0, wanted=True)
    for optimizer, value in zip(optimizers, net.losses(x), strict=True):
        optimizer.zero_grad()
        recording.loss(value, 1.0)
        value.backward()
        recording.differentiated(goes_on=True)
        optimizer.step()
    recording.end()
    steps.release()
    return net, loss


def test_the_curvature_has_a_block_for_each_loss_and_is_not_their_mean(watched):
    net, loss = watched
    params = list(net.parameters())
    with loss(None) as loss_fn:
        assert [sorted(tape.owners) for tape in loss_fn.tapes] == [["one"], ["other"]]
        curvature = hessian(loss_fn, params)
        whole = torch.stack([curvature @ unit for unit in torch.eye(5)])
    torch.testing.assert_close(whole, torch.diag(torch.tensor([10.0, 10.0, 10.0, 1.0, 1.0])))


def test_parts_of_the_loss_sum_up_to_it(watched):
    _, loss = watched
    with loss(None) as loss_fn:
        parts = loss_fn.parts()
        torch.testing.assert_close(sum(weight * part() for weight, part in parts), loss_fn())
        assert [weight for weight, _ in parts] == [1.0, 1.0]


def test_a_refused_loss_takes_those_of_the_same_parameters_and_no_others():
    fine, bad = empty_tape(""), empty_tape("a reason")
    tapes = [
        fine.replaced(owners=frozenset("ab")),
        bad.replaced(owners=frozenset("b")),
        fine.replaced(owners=frozenset("c")),
        fine.replaced(owners=frozenset()),
    ]
    usable, refused = _usable(tapes)
    assert [tape.owners for tape in usable] == [frozenset("c")]
    assert refused == "a reason"
    assert _usable(tapes[3:]) == ([], "no update has moved a parameter by the loss")
    assert _usable([]) == ([], "the step had no loss to follow")
