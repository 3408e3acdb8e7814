"""Whether a batch has led to an update that was seen, one that was not, or to none."""

import pytest
import torch

from lightning_topo._watch.movements import Movements
from tests.watch.driving import steps_of, training_of, two_layers


class Followed:
    """A module's movements, with what they have reported."""

    def __init__(self):
        self.model = two_layers()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.steps = steps_of(self.model, on_outside=lambda *found: self.movements.outside(*found))
        self.steps.keep([self.optimizer])
        self.events, self.n_outside = [], 0
        self.movements = Movements(training_of(self.model, self.optimizer), self.events.append, self.count)

    def count(self):
        self.n_outside += 1

    def update(self):
        for p in self.model.parameters():
            p.grad = torch.ones_like(p)
        self.optimizer.step()

    def has_stepped(self, step):
        found = self.movements.has_stepped(self.steps, step)
        self.steps.advance()
        return found


@pytest.fixture
def followed():
    made = Followed()
    yield made
    made.steps.release()


def test_an_update_that_was_seen_is_a_step_and_nothing_to_report(followed):
    followed.update()
    assert followed.has_stepped(1)
    assert not followed.has_stepped(2)  # accumulation: no update yet
    assert (followed.events, followed.movements.has_unseen_steps) == ([], False)


def test_parameters_that_move_without_an_update_are_a_step_reported_once(followed):
    for step in (1, 2, 3):
        with torch.no_grad():
            followed.model[2].weight.add_(1.0)
        assert followed.has_stepped(step)
        assert followed.movements.unseen == ["2.weight"]
    [event] = followed.events
    assert (event.name, event.step, event.value) == ("unseen_step", 1, 1.0)
    assert "2.weight" in event.message
    assert "SGD" in event.message
    assert followed.movements.has_unseen_steps


def test_an_update_that_was_missed_by_an_error_of_ours_is_not_called_hidden(followed):
    followed.steps.failures.append(RuntimeError("ours"))
    with torch.no_grad():
        followed.model[2].weight.add_(1.0)
    assert followed.has_stepped(1)
    assert followed.events == []


def test_a_change_by_something_else_is_reported_once_for_each_optimizer_and_noted_every_time(followed):
    other = torch.optim.Adam(followed.model.parameters())
    followed.movements.outside(followed.optimizer, [])
    assert followed.n_outside == 0
    followed.movements.outside(followed.optimizer, ["0.weight"])
    followed.movements.overwritten(followed.optimizer, ["0.weight"], True)
    followed.movements.overwritten(other, ["0.weight", "0.bias"], True)
    assert followed.n_outside == 3
    assert [(e.name, e.step, e.value) for e in followed.events] == [
        ("outside_change", 0, 1.0),
        ("outside_change", 1, 2.0),
    ]
    assert "SGD" in followed.events[0].message
    assert "that step is open" in followed.events[1].message


def test_what_is_written_between_two_batches_is_no_unseen_step_of_one_without_an_update(followed):
    followed.update()
    assert followed.has_stepped(1)
    with torch.no_grad():
        followed.model[2].weight.add_(1.0)  # as an average that is put in for the last pass
    followed.movements.before_batch(followed.steps)
    assert not followed.has_stepped(2)
    assert [(e.name, e.value) for e in followed.events] == [("outside_change", 1.0)]
    assert not followed.movements.has_unseen_steps
    with torch.no_grad():
        followed.model[2].weight.add_(1.0)  # within a batch it is one
    assert followed.has_stepped(2)
    assert followed.movements.unseen == ["2.weight"]


def test_an_update_between_two_batches_is_the_next_ones(followed):
    followed.update()
    assert followed.has_stepped(1)
    before = followed.model[2].weight.detach().clone()
    followed.update()
    followed.movements.before_batch(followed.steps)
    assert torch.equal(followed.steps.pending[0].before["2.weight"], before)
    assert followed.has_stepped(2)
    assert followed.events == []


def test_where_no_update_was_ever_seen_a_step_between_batches_is_an_unseen_one(followed):
    with torch.no_grad():
        followed.model[2].weight.add_(1.0)
    followed.movements.before_batch(followed.steps)
    assert followed.has_stepped(1)
    assert followed.movements.has_unseen_steps
