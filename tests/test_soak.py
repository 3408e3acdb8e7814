"""A training with everything on, some hundred steps long: nothing grows with it. The long one: benchmarks/soak.py."""

import logging
import multiprocessing
import sys
import warnings

import pytest

from benchmarks.soak import open_handles, slope, soak
from lightning_topo import read_record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and handles are read from /proc")
STEPS = 400


def test_the_slope_is_that_of_a_line():
    found = slope([0, 1000, 2000, 3000], [5.0, 7.0, 9.0, 11.0])
    assert (found.kb_per_1000, found.within, found.r2) == pytest.approx((2.0, 0.0, 1.0))
    assert slope([0, 1000, 2000], [5.0, 5.0, 5.0]).kb_per_1000 == 0.0


@pytest.mark.slow
def test_memory_and_handles_stay_flat(tmp_path, caplog):
    warnings.filterwarnings("ignore")
    caplog.set_level(logging.ERROR, "lightning.pytorch")
    before = open_handles()
    gauge = soak(tmp_path, STEPS, samples=20, max_record_mb=0.15, seldom=100)
    settled = len(gauge.steps) // 2  # the worker and the tracker have begun
    assert gauge.steps[-1] == STEPS
    # While it trains: the record, the tracker's file, the worker's socket; a job's file may be open or not.
    assert len(gauge.steps[settled:]) == 10
    assert max(gauge.handles[settled:]) - min(gauge.handles[settled:]) <= 1
    found = slope(gauge.steps[settled:], gauge.memory_kb[settled:])
    assert found.kb_per_1000 - found.within < 4_000
    # Afterwards all is closed again: neither a file nor a process is left.
    assert open_handles() <= before + 1
    assert not multiprocessing.active_children()
    (path,) = tmp_path.rglob("measurements.jsonl")
    record = read_record(path.parent)
    assert record.thinned is not None
    assert record.n_unreadable == 0
