"""The state of a watch, there and back, and what a damaged one becomes."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_topo._watch.checkpoint import SavedWatch, saved_place, saved_watch
from lightning_topo._watch.coverage import Shares
from lightning_topo._watch.schedule import Slot
from lightning_topo.phases import DetectorState

SAVED = SavedWatch(
    Path("runs/topology"),
    "abc",
    17,
    DetectorState(),
    {"sharpness": Slot(10, 20, 25)},
    Shares(17, 2, 1),
    {"persistence": (12, 16)},
    0.1,
    {"step_edge": {"window": [[1.0, 2.0, 3.0, 0.5]], "count": 4, "start": 1.0}},
)


def test_there_and_back_through_a_file_without_pickled_code(tmp_path):
    torch.save(SAVED.to_dict(), tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert SavedWatch.read(again) == SAVED
    assert saved_watch(again, 17, 1) == (SAVED, None)
    assert saved_place(again) == (Path("runs/topology"), "abc")


def test_a_state_of_before_probes_carried_anything_is_read():
    old = SAVED.to_dict()
    del old["carried"]
    assert SavedWatch.read(old) == replace(SAVED, carried={})


def damaged(**changes):
    return copy.deepcopy(SAVED.to_dict()) | changes


DAMAGED = {
    "no mapping": ["version"],
    "empty": {},
    "another version": damaged(version=1),
    "no slots": damaged(slots=None),
    "a slot too short": damaged(slots={"sharpness": [1, 2]}),
    "a stride of nothing": damaged(slots={"sharpness": [1, 0, 1]}),
    "a negative step": damaged(step=-1),
    "an infinite step": damaged(step=float("inf")),
    "a folder that is a number": damaged(dirpath=3),
    "shares of something else": damaged(shares={"n": 1}),
    "no detector": damaged(detector="preserved"),
    "awaited by nobody": damaged(awaited=[1]),
    "carried by nobody": damaged(carried=[1]),
}


@pytest.mark.parametrize("state", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_state_is_a_gap_and_the_run_begins_anew(state):
    saved, event = saved_watch(state, 17, 2)
    assert saved is None
    assert (event.name, event.step, event.epoch, event.severity) == ("gap", 17, 2, "warn")
    assert "cannot be used" in event.message
    assert event.remedy
    assert saved_place(state) is None


def test_no_state_is_no_event():
    assert saved_watch(None, 0, 0) == (None, None)


def test_a_run_without_a_record_has_no_place():
    assert saved_place(damaged(run_id=None, dirpath=None)) is None


def test_what_was_under_way_is_named():
    assert "persistence at step 12, 16" in SAVED.under_way()
    assert SavedWatch(None, None, 0, DetectorState()).under_way() == ""
