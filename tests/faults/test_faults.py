"""Faults in real trainings, by `cases`; `python -m tests.faults` prints them as a table."""

import json
import os
import sys

import pytest

from lightning_topo.outputs.record import MEASUREMENTS
from tests.faults import cases
from tests.faults.audit import audit
from tests.faults.nursery import Nursery

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="trainings are forked"),
]


@pytest.fixture(scope="module")
def nursery():
    return Nursery()


FEW = {
    "kill -9 at random moments": 2,
    "checkpoint's state damaged": 2,
    "resumed on other ranks": 1,
    "ends while the worker computes": 1,
    "branches": 1,
    "rewinds": 1,
    "two writers of a folder": 2,
    "the folder is gone": 2,
    "five seconds from signal to kill": 1,
    "hostile records": 6,
}
"""So many faults of a case, for the time that they take; `python -m tests.faults` injects all."""


@pytest.mark.parametrize("name", cases.CASES)
def test_training_goes_on_and_nothing_is_lost(name, nursery, tmp_path):
    few = [FEW[name]] if name in FEW else []
    found = cases.CASES[name](nursery, tmp_path, *few)
    assert found.n_survived == found.n_faults > 0
    assert found.n_lost == 0


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
