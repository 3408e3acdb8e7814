"""Faults in real trainings, by `cases`; `python -m tests.faults` prints them as a table."""

import json
import os
import sys

import pytest

from lightning_topo.outputs.record import MEASUREMENTS
from tests.faults import cases
from tests.faults.audit import audit
from tests.faults.nursery import Nursery

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="trainings are forked")


@pytest.fixture(scope="module")
def nursery():
    return Nursery()


@pytest.mark.parametrize("name", [name for name in cases.CASES if not name.startswith("kill")])
def test_training_goes_on_and_nothing_is_lost(name, nursery, tmp_path):
    found = cases.CASES[name](nursery, tmp_path)
    assert found.n_survived == found.n_faults > 0
    assert found.n_lost == 0


def test_kill_9_twenty_times(nursery, tmp_path):
    assert cases.killed(nursery, tmp_path, times=20).n_lost == 0


def test_the_audit_misses_nothing(nursery, tmp_path):
    """A line taken away, doubled or changed is found."""
    nursery.succeeds(cases.first, tmp_path)
    assert audit(tmp_path) == 0
    path = tmp_path / "topology" / MEASUREMENTS
    whole = path.read_text().splitlines(keepends=True)
    at = next(i for i, text in enumerate(whole) if json.loads(text).get("probe") == "distortion")
    for broken, complaint in (
        (whole[:at] + whole[at + 1 :], "0 lines"),
        ([*whole, whole[at]], "2 lines"),
        ([*whole[:at], whole[at].replace('"critical_ratio": 0', '"critical_ratio": 1'), *whole[at + 1 :]], "not what"),
    ):
        path.write_text("".join(broken))
        with pytest.raises(AssertionError, match=complaint):
            audit(tmp_path)
