"""One network trained the same way through all four doors leaves the same record."""

import pytest
import torch

from tests.loops.loops import by_fabric, by_hand, by_lightning, by_transformers, weights

DOORS = {"hand": by_hand, "fabric": by_fabric, "transformers": by_transformers}


def told(watched):
    """Everything that a record says of the training; nothing of the machine's time is in it."""
    record = watched.record
    lines = [(m.step, m.epoch, m.probe, m.group, dict(m.values)) for m in record.measurements]
    events = [(str(e.name), e.step, e.epoch, e.group, str(e.severity), e.value, e.message) for e in record.events]
    return lines, events


@pytest.fixture(scope="module", params=[0.1, 20.0], ids=["steady", "breaking"])
def by_trainer(request, tmp_path_factory):
    model, monitor = by_lightning(tmp_path_factory.mktemp("lightning"), lr=request.param)
    return request.param, weights(model), told(monitor), [(str(e.name), e.step, e.group) for e in monitor.events]


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_every_door_leaves_the_record_that_lightning_leaves(tmp_path, by_trainer, door):
    lr, wanted_weights, (wanted_lines, wanted_events), wanted_names = by_trainer
    model, watched = door(tmp_path, lr=lr)
    found = weights(model)
    assert found.keys() == wanted_weights.keys()
    assert all(torch.equal(found[name], p) for name, p in wanted_weights.items())
    lines, events = told(watched)
    assert lines == wanted_lines
    assert events == wanted_events
    assert [(str(e.name), e.step, e.group) for e in watched.events] == wanted_names


def test_the_record_they_share_has_every_kind_of_line(by_trainer):
    lr, _, (lines, events), _ = by_trainer
    assert {probe for _, _, probe, _, _ in lines} >= {"training", "distortion", "persistence", "coverage"}
    assert {group for _, _, probe, group, _ in lines if probe == "distortion"} == {"net.0", "net.2"}
    assert {step for step, _, probe, _, _ in lines if probe == "training"} == set(range(1, 17))
    broke = any(name == "topology_breakdown" for name, *_ in events)
    assert broke == (lr > 1.0)
