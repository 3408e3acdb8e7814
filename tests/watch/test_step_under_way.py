"""One step from the beginning of its batch to its end: what is recorded, kept and compared on the way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo._watch import step_under_way
from lightning_topo.probes import Distortion, StepEdge
from tests.watch.driving import Watched

TARGETS = torch.tensor([0, 1] * 3)


def under_way(watched):
    return watched.watch._under_way


@pytest.fixture
def compared(monkeypatch):
    """Each step that was compared with its rule: the optimizer, and the values before by the ids of parameters."""
    found = []
    monkeypatch.setattr(
        step_under_way,
        "check_step",
        lambda optimizer, before: found.append((optimizer, {key: value.clone() for key, value in before.items()})),
    )
    return found


def half_a_step(watched):
    """A step up to its update."""
    under_way(watched).begin(None)
    loss = F.cross_entropy(watched.model(watched.x), TARGETS)
    under_way(watched).loss(loss, 1.0, in_engine=False)
    loss.backward()
    under_way(watched).differentiated(goes_on=False, in_engine=False)


def test_a_batch_without_an_update_is_no_step(watched):
    half_a_step(watched)
    assert not under_way(watched).end()
    half_a_step(watched)
    watched.optimizer.step()
    assert under_way(watched).end()


def test_a_step_is_recorded_for_neurons_and_then_no_more(watched):
    n_tapes = []
    for _ in range(2):
        half_a_step(watched)
        n_tapes.append(len(watched.watch._recording.so_far()))
        watched.optimizer.step()
        watched.watch.after_batch(None)
        watched.training.step += 1
    assert n_tapes == [1, 0]


def test_a_step_is_compared_with_its_rule_only_where_a_probe_relies_on_it(compared):
    # At its first time it asks for the step that it measures, which is the next.
    for probe, steps in ((Distortion(1), []), (StepEdge(3), [3, 4, 6])):
        watched, found = Watched([probe]), []
        for step in range(1, 7):
            watched.batch()
            found += [step] * len(compared)
            compared.clear()
        watched.watch.close(in_haste=True)
        assert found == steps


def test_a_step_is_compared_from_its_own_beginning_before_any_guard(compared):
    watched = Watched([StepEdge(1)])
    watched.batch()
    compared.clear()

    def undo(update):
        with torch.no_grad():
            for name, parameter in update.after.items():
                parameter.copy_(update.before[name])
        assert len(compared) == 1

    watched.watch.steps.guards.append(undo)
    start = {id(p): p.detach().clone() for p in watched.model.parameters()}
    watched.batch()
    [(optimizer, before)] = compared
    assert optimizer is watched.optimizer
    assert before.keys() == start.keys()
    assert all(torch.equal(before[key], start[key]) for key in start)
    watched.watch.close(in_haste=True)


def test_an_error_of_the_comparison_ends_no_step_and_is_raised_behind_it(monkeypatch):
    def fails(optimizer, before):
        raise ArithmeticError("no rule")

    watched = Watched([StepEdge(1)])
    monkeypatch.setattr(step_under_way, "check_step", fails)
    before = watched.model[0].weight.detach().clone()
    with pytest.raises(ArithmeticError, match="no rule"):
        watched.batch()
    assert not torch.equal(watched.model[0].weight, before)
    watched.watch.close(in_haste=True)


def test_lazy_parameters_are_kept_once_they_have_shapes():
    """They have none as the first batch begins; without a copy it would not be seen that something moves them."""
    watched = Watched()
    watched.model[0] = nn.LazyLinear(5)
    watched.optimizer.add_param_group({"params": list(watched.model[0].parameters())})
    watched.watch.steps.read_names()
    half_a_step(watched)
    watched.model[0].weight.data += 1.0
    assert under_way(watched).end()
    assert list(watched.watch._movements.unseen) == ["0.weight"]
    watched.watch.close(in_haste=True)
